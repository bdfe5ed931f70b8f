"""Build the compiled modules. Everything else about the package is in pyproject.toml.

FASTDERP_CHECKED=address|thread|1 builds the checked variant for tests: Cython's own
checks on, and with `address` (plus undefined behaviour) or `thread` the sanitizer of that name.
"""

import os
import shutil
import sysconfig

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

EVERYWHERE = {"language_level": 3, "freethreading_compatible": True}
# The packet path: every index is proved by the code beside it, and the checked build tests that.
PACKET_PATH = {"boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}

# module -> directives beyond EVERYWHERE
EXTENSIONS = {
    "fastderp.dataplane.arena": PACKET_PATH,
    "fastderp.dataplane.events": PACKET_PATH,
    "fastderp.dataplane.frame": PACKET_PATH,
    "fastderp.dataplane.output": PACKET_PATH,
    "fastderp.dataplane.plane": {},
    "fastderp.dataplane.queue": PACKET_PATH,
    "fastderp.dataplane.record": PACKET_PATH,
    "fastderp.dataplane.routes": PACKET_PATH,
    "fastderp.dataplane.session": PACKET_PATH,
    "fastderp.dataplane.wheel": PACKET_PATH,
    "fastderp.dataplane.worker": PACKET_PATH,
    "fastderp.tls.handshake": {},
    "fastderp.tls.openssl": {},
    "fastderp.loadgen.engine": PACKET_PATH,
    "fastderp.loadgen.histogram": PACKET_PATH,
    "fastderp.loadgen.payload": PACKET_PATH,
}

CHECKED = os.environ.get("FASTDERP_CHECKED", "")
compile_args = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-pthread"]
link_args = ["-pthread"]
if CHECKED:
    compile_args = [*compile_args, "-O1", "-g", "-fno-omit-frame-pointer"]
    if CHECKED == "address":
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    elif CHECKED == "thread":
        sanitize = ["-fsanitize=thread"]
    else:
        sanitize = []
    compile_args += sanitize
    link_args += sanitize


def extensions():
    for module, directives in EXTENSIONS.items():
        path = module.replace(".", "/") + ".pyx"
        ext = Extension(module, [path], extra_compile_args=compile_args, extra_link_args=link_args)
        relaxed = {} if CHECKED else directives
        [ext] = cythonize(
            [ext],
            compiler_directives=EVERYWHERE | relaxed,
            build_dir=os.path.join("build", "cython-checked" if CHECKED else "cython"),
            force=bool(CHECKED),
        )
        yield ext


setup(ext_modules=list(extensions()))
