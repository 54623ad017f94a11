"""Places of a test's own on real servers: a schema on MySQL, a namespace on Pulsar; gone when the test is over.

The servers are named by the environment, as `testbed env` prints it: MYSQL_URL, PULSAR_URL, PULSAR_ADMIN_URL.
"""

import contextlib
import os
from collections.abc import AsyncIterator

import httpx2
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from seedwork.adapters.mysql import CHARSET, COLLATION
from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.messages import new_id


@contextlib.asynccontextmanager
async def mysql_schema(server: str | None = None) -> AsyncIterator[str]:
    """The URL of an empty schema `paas_…`.

    Args:
        server: An SQLAlchemy URL of a user who may make such schemas; MYSQL_URL, if not given.
    """
    url = make_url(server or os.environ["MYSQL_URL"])
    name = f"paas_{new_id().replace('-', '')[-16:]}"
    await _run(url, f"CREATE DATABASE `{name}` CHARACTER SET {CHARSET} COLLATE {COLLATION}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        await _run(url, f"DROP DATABASE IF EXISTS `{name}`")


@contextlib.asynccontextmanager
async def pulsar_namespace() -> AsyncIterator[PulsarAddress]:
    """The address of an empty namespace, which `pulsar_admin.set_up` still has to fill."""
    address = PulsarAddress(
        url=os.environ["PULSAR_URL"],
        admin_url=os.environ["PULSAR_ADMIN_URL"],
        tenant="paas-tests",
        namespace=f"t{new_id().replace('-', '')[-16:]}",
    )
    try:
        yield address
    finally:
        await _remove(address)


async def _remove(address: PulsarAddress) -> None:
    space = f"{address.tenant}/{address.namespace}"
    async with httpx2.AsyncClient(base_url=f"{address.admin_url}/admin/v2/", timeout=60, trust_env=False) as http:
        topics = await http.get(f"persistent/{space}/partitioned")
        for topic in topics.json() if topics.status_code == 200 else ():
            path = topic.replace("://", "/", 1)
            (await http.delete(f"{path}/partitions", params={"force": "true"})).raise_for_status()
        if topics.status_code == 200:
            (await http.delete(f"namespaces/{space}")).raise_for_status()


async def _run(url: URL, statement: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as conn:
            await conn.execute(text(statement))
    finally:
        await engine.dispose()
