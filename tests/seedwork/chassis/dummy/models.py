"""The dummy service's tables, as its newest migration leaves them."""

from sqlalchemy import BigInteger, Column, Index, MetaData, String, Table

from seedwork.tables import kernel_tables

metadata = MetaData()
kernel = kernel_tables(metadata)
things = Table("things", metadata, Column("id", String(36), primary_key=True), Column("size_bytes", BigInteger))
Index("ix_things", things.c.id)
