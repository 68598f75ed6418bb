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

SOURCES = ("entropy", "guard", "kernel", "mapping", "module")
HEADERS = ("entropy", "guard", "kernel", "mapping")

native = Extension(
    "castore._native",
    sources=[f"castore/native/{name}.c" for name in SOURCES],
    depends=[f"castore/native/{name}.h" for name in HEADERS],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
    extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"],
    libraries=["m"],
    py_limited_api=LIMITED_API,
)


class OptionalBuild(build_ext):
    """Says in one line what a build without the extension means, and goes on."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            print(
                f"castore: the C extension was not built ({error}): castore will work, but cut "
                "many times slower. Install a C compiler (gcc or clang) and reinstall."
            )


setup(
    ext_modules=[native],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
