import os

from aiohttp import web


async def root(_request):
    return web.Response(text="hello from aiohttp")


app = web.Application()
app.add_routes([web.get("/", root)])

if __name__ == "__main__":
    web.run_app(app, port=int(os.environ["PORT"]))
