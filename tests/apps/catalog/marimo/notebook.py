import marimo

app = marimo.App()


@app.cell
def hello():
    "hello from marimo"
    return


if __name__ == "__main__":
    app.run()
