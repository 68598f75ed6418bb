"""Builds the optional C extension; everything else is in pyproject.toml.

Without a C compiler the install goes through all the same: castore then cuts with numpy, or with
plain Python, at the same places.
"""

from __future__ import annotations

import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# One binary for every CPython from 3.11 on; builds without the GIL have no stable ABI yet.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

PARTS = (
    "anchor_table",
    "anchors",
    "delta",
    "endelta",
    "entropy",
    "guard",
    "held",
    "kernel",
    "mapping",
    "similarity",
    "smallfiles",
    "undelta",
)

native = Extension(
    "castore._native",
    sources=[f"castore/native/{name}.c" for name in (*PARTS, "delta_decode", "module")],
    depends=[f"castore/native/{name}.h" for name in (*PARTS, "gil")],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
    extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"],
    libraries=["m"],
    py_limited_api=LIMITED_API,
    optional=True,
)


class SayWhatIsMissing(build_ext):
    """A build that fails is not an error; one line says what it means."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception:
            print(
                "castore: the C extension could not be built. castore will work without it, but "
                "cut files into chunks many times slower. For the extension, install a C compiler "
                "(gcc or clang) and reinstall."
            )
            raise  # setuptools goes on: the extension is optional


setup(
    ext_modules=[native],
    cmdclass={"build_ext": SayWhatIsMissing},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
