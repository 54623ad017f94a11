"""A running app without sockets: its lifespan by hand, requests straight into ASGI."""

import contextlib
from collections.abc import AsyncIterator

import httpx2
from fastapi import FastAPI


@contextlib.asynccontextmanager
async def running(app: FastAPI, *, token: str = "") -> AsyncIterator[httpx2.AsyncClient]:
    """Start the app, give a client, stop the app.

    Args:
        app: What `create_app` gives.
        token: Shown with every request; empty: none.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service", headers=headers) as client,
    ):
        yield client
