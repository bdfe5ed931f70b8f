"""Build the compiled modules. Everything else about the package is in pyproject.toml.

FASTDERP_CHECKED=address|thread|1 builds the checked variant for tests: Cython's own
checks on, and with `address` (plus undefined behaviour) or `thread` the sanitizer of that name.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

EVERYWHERE = {"language_level": 3, "freethreading_compatible": True}
# The packet path: every index is proved by the code beside it, and the checked build tests that.
PACKET_PATH = {"boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}

# module -> directives beyond EVERYWHERE
EXTENSIONS = {
    "fastderp.dataplane.aead": PACKET_PATH,
    "fastderp.dataplane.arena": PACKET_PATH,
    "fastderp.dataplane.departures": PACKET_PATH,
    "fastderp.dataplane.events": PACKET_PATH,
    "fastderp.dataplane.flows": PACKET_PATH,
    "fastderp.dataplane.frame": PACKET_PATH,
    "fastderp.dataplane.news": {},
    "fastderp.dataplane.output": PACKET_PATH,
    "fastderp.dataplane.plane": {},
    "fastderp.dataplane.queue": PACKET_PATH,
    "fastderp.dataplane.record": PACKET_PATH,
    "fastderp.dataplane.routes": PACKET_PATH,
    "fastderp.dataplane.session": PACKET_PATH,
    "fastderp.dataplane.wheel": PACKET_PATH,
    "fastderp.dataplane.worker": PACKET_PATH,
    "fastderp.tls.context": {},
    "fastderp.tls.handshake": {},
    "fastderp.tls.openssl": {},
    "fastderp.loadgen.engine": PACKET_PATH,
    "fastderp.loadgen.hello": PACKET_PATH,
    "fastderp.loadgen.histogram": PACKET_PATH,
    "fastderp.loadgen.load": PACKET_PATH,
    "fastderp.loadgen.logins": PACKET_PATH,
    "fastderp.loadgen.payload": PACKET_PATH,
}

CHECKED = os.environ.get("FASTDERP_CHECKED", "")
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
# The two variants never share an object file.
BUILD_BASE = os.path.join("build", "checked" if CHECKED else "release")

compile_args = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-pthread"]
link_args = ["-pthread"]
if CHECKED:
    sanitizer = SANITIZERS.get(CHECKED, [])
    compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", *sanitizer]
    link_args += sanitizer


def extension(module, directives):
    source = module.replace(".", "/") + ".pyx"
    [built] = cythonize(
        [Extension(module, [source], extra_compile_args=compile_args, extra_link_args=link_args)],
        compiler_directives=EVERYWHERE | ({} if CHECKED else directives),
        build_dir=os.path.join(BUILD_BASE, "cython"),
    )
    return built


setup(
    ext_modules=[extension(module, directives) for module, directives in EXTENSIONS.items()],
    options={"build": {"build_base": BUILD_BASE}},
)
