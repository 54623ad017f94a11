from flask import Flask

application = Flask(__name__)


@application.route("/")
def root() -> str:
    return "hello from a procfile"
