"""Names the packages and the package's description, and compiles cats._native. Everything else is in pyproject.toml.

cats._native is one C++ module that is built without torch. CUDA kernels are added if nvcc is found, with or without a
GPU. If something cannot be built, the install succeeds without it, and the reason is written to cats/_build.py.

Environment variables: CATS_CUDA=0 leaves out the CUDA kernels; with CATS_CUDA=1 it is an error if they cannot be built.
CUDA_HOME is the folder of the CUDA toolkit. CXX, CFLAGS and LDFLAGS work as usual.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

CSRC = Path("csrc")
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread", "-ffp-contract=fast", "-fno-math-errno"]
CXX_FLAGS += ["-Wno-psabi"]  # vectors are passed to inlined functions only
# Machine code for A100 and H100/H200, and PTX that the driver compiles for other chips; all from one front-end pass.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
NVCC_FLAGS += ["-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]"]
RECORD = '''"""Written by setup.py: the reason why compiled code is missing, or None if it is there."""

NATIVE: str | None = {native!r}
CUDA: str | None = {cuda!r}
'''


class NoCuda(Exception):
    """The CUDA kernels cannot be built. The text says why."""


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        choice = os.environ.get("CATS_CUDA", "")
        if choice not in ("", "0", "1"):
            raise SystemExit(f"CATS_CUDA is {choice!r}, but must be 0 (without CUDA), 1 (with CUDA) or unset")
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        native: str | None = None
        cuda: str | None = "built with CATS_CUDA=0"
        objects: list[str] = []
        libraries: list[str] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if choice != "0":
                try:
                    objects, libraries = self.compile_cuda(pool)
                    cuda = None
                except NoCuda as error:
                    if choice == "1":
                        raise SystemExit(f"CATS_CUDA=1, but {error}") from None
                    cuda = f"built without CUDA: {error}"
            try:
                objects += self.compile_cxx(pool, ext, with_cuda=cuda is None)
                self.compiler.link_shared_object(
                    objects + libraries, str(target), extra_postargs=["-pthread", "-ldl"], target_lang="c++"
                )
            except (BaseError, CCompilerError, OSError) as error:
                if choice == "1":
                    raise SystemExit(f"CATS_CUDA=1, but {error}") from None
                native = f"built without the C++ kernels: {error}"
                cuda = native
        for reason in filter(None, {native, cuda}):
            self.warn(reason)
        record = target.with_name("_build.py")
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(RECORD.format(native=native, cuda=cuda), encoding="utf-8")

    def compile_cxx(self, pool: ThreadPoolExecutor, ext: Extension, with_cuda: bool) -> list[str]:
        """The object files of csrc/*.cpp. cuda_bindings.cpp is left out if there are no CUDA kernels."""
        macros = [("CATS_CUDA", "1")] if with_cuda else []
        sources = [source for source in ext.sources if with_cuda or Path(source).stem != "cuda_bindings"]

        def compile_one(source: str) -> list[str]:
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=[pybind11.get_include()],
                macros=macros,
                extra_postargs=CXX_FLAGS,
            )

        return [path for paths in pool.map(compile_one, sources) for path in paths]

    def compile_cuda(self, pool: ThreadPoolExecutor) -> tuple[list[str], list[str]]:
        """The object files of csrc/*.cu, and what to link them with."""
        if sys.platform != "linux":
            raise NoCuda(f"the CUDA kernels are built on Linux only, this is {sys.platform}")
        nvcc = find_nvcc()
        runtime = find_runtime(nvcc)
        folder = Path(self.build_temp, CSRC)
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(source: Path) -> str:
            target = str(folder / f"{source.stem}.cu.o")
            done = subprocess.run([nvcc, *NVCC_FLAGS, "-c", source, "-o", target], capture_output=True, text=True)
            if done.returncode != 0:
                sys.stderr.write(done.stdout + done.stderr)
                message = first_error(done.stderr) or f"exit status {done.returncode}"
                raise NoCuda(f"{nvcc} failed on {source}: {message}")
            return target

        return list(pool.map(compile_one, sorted(CSRC.glob("*.cu")))), [str(runtime), "-lrt"]

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for ext in self.extensions:
            inplace, built = map(Path, self._get_inplace_equivalent(self.get_finalized_command("build_py"), ext))
            if not built.exists():  # remove the module of an earlier build, which the record would contradict
                inplace.unlink(missing_ok=True)
            shutil.copyfile(built.with_name("_build.py"), inplace.with_name("_build.py"))


def find_nvcc() -> str:
    folders = [f"{home}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    found = shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if found is None:
        raise NoCuda("there is no nvcc in CUDA_HOME or PATH")
    return found


def find_runtime(nvcc: str) -> Path:
    """The libcudart_static.a of nvcc's toolkit. nvcc may be a script outside it, so it is asked for the path."""
    dry = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), top and top[1].strip()]
    return find_in(Path(folder).resolve() for folder in [*folders, Path(nvcc).resolve().parent.parent] if folder)


def find_in(toolkits: Iterable[Path]) -> Path:
    seen = list(dict.fromkeys(toolkits))
    for toolkit in seen:
        for pattern in ("lib*/libcudart_static.a", "lib*/*/libcudart_static.a", "targets/*/lib/libcudart_static.a"):
            found = sorted(toolkit.glob(pattern))
            if found and any(toolkit.glob("**/include/cuda_runtime.h")):
                return found[0]
    raise NoCuda(f"no CUDA toolkit has include/cuda_runtime.h and lib*/libcudart_static.a: {', '.join(map(str, seen))}")


def first_error(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if re.search(r"error|fatal", line, re.IGNORECASE)), None)


def description() -> str:
    """README.md without its links into the repository and its pictures: on the page of a package they lead nowhere."""
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


# kernels/ is installed inside cats: the top-level name `kernels` belongs to another, widely used package.
setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["cats", "cats.*"]), "cats.kernels"],
    package_dir={"cats": "cats", "cats.kernels": "kernels"},
    package_data={
        "cats": ["py.typed", "_native.pyi"],
        "cats.nmt.config.presets": ["*.toml"],
        "cats.nmt.scoring.report": ["page.css", "page.js"],
    },
    ext_modules=[
        Extension(
            "cats._native",
            sources=sorted(map(str, CSRC.glob("*.cpp"))),
            depends=sorted(str(path) for pattern in ("*.h", "*.cu", "*.cuh") for path in CSRC.glob(pattern)),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
