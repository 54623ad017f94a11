from quart import Quart

app = Quart(__name__)


@app.route("/")
async def root() -> str:
    return "hello from quart"
