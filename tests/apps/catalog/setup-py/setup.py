from setuptools import setup

setup(name="shop", version="0.1", py_modules=["shop"], install_requires=["idna==3.4"])
