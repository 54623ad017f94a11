import ctypes
from pathlib import Path

version = ctypes.CDLL(str(Path(__file__).with_name("libnative.so"))).version
