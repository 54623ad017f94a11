import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution


class Binary(Distribution):
    def has_ext_modules(self):
        return True


class Compile(build_py):
    def run(self):
        super().run()
        target = f"{self.build_lib}/native/libnative.so"
        include = subprocess.run(
            ["pg_config", "--includedir"], check=True, capture_output=True, text=True
        ).stdout.strip()
        subprocess.run(["gcc", "-shared", "-fPIC", f"-I{include}", "-o", target, "native.c", "-lpq"], check=True)


setup(packages=["native"], cmdclass={"build_py": Compile}, distclass=Binary)
