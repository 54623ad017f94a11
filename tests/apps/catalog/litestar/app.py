from litestar import Litestar, get


@get("/")
async def root() -> str:
    return "hello from litestar"


app = Litestar([root])
