"""`fastderp-relay` in a region: secret and members, and changes of both. PROTOCOL §12."""

from __future__ import annotations

import base64
import re
import signal
from pathlib import Path

import pytest

from fastderp.wire.keys import MeshKey
from tests.kit.command import RunningRelay, refused, relay
from tests.kit.relay import eventually
from tests.kit.service import ok, serving

QUIET = ("-a", "127.0.0.1:0", "-stun=false")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.key"
    path.write_text(f" {MeshKey.generate().text.upper()}\n")
    return path


def members_of(running: RunningRelay) -> dict[str, str]:
    """Return the state of each link, by member."""
    links = r'^fastderp_mesh_links\{host="(.*?)",state="(\w+)"\} 1$'
    return dict(re.findall(links, running.varz(), re.MULTILINE))


def test_two_commands_make_a_region(tmp_path: Path, secret: Path) -> None:
    flags = (*QUIET, f"-mesh-psk-file={secret}")
    with relay(*flags, "-c", str(tmp_path / "one")) as one:
        member = f"http://127.0.0.1:{one.port}"
        with relay(*flags, "-c", str(tmp_path / "two"), f"-mesh-with={member}") as two:
            assert "\nmesh: 1 keys, 1 members\n" in two.said
            eventually(lambda: members_of(two) == {member: "up"})


def test_members_and_secret_are_read_again_on_sighup(tmp_path: Path, secret: Path) -> None:
    members = tmp_path / "members"
    members.write_text("# none so far\n")
    with relay(*QUIET, "-c", str(tmp_path / "one"), f"-mesh-psk-file={secret}") as one:
        member = f"http://127.0.0.1:{one.port}"
        with relay(
            *QUIET,
            "-c",
            str(tmp_path / "two"),
            f"-mesh-psk-file={secret}",
            f"-mesh-with=@{members}",
        ) as two:
            assert members_of(two) == {}
            members.write_text(f"{member}  # the first\n")
            two.process.send_signal(signal.SIGHUP)
            eventually(lambda: members_of(two) == {member: "up"})
            members.write_text("a/b/c\n")
            two.process.send_signal(signal.SIGHUP)
            line = two.hears("reload: mesh: -mesh-with")
            assert "HOST/DIALHOST" in line and "; the previous one stays in force" in line
            assert two.stop()[0] == 0


def test_an_empty_file_of_members_keeps_the_links_and_a_comment_ends_them(
    tmp_path: Path, secret: Path
) -> None:
    members = tmp_path / "members"
    with relay(*QUIET, "-c", str(tmp_path / "one"), f"-mesh-psk-file={secret}") as one:
        member = f"http://127.0.0.1:{one.port}"
        members.write_text(member)
        with relay(
            *QUIET,
            "-c",
            str(tmp_path / "two"),
            f"-mesh-psk-file={secret}",
            f"-mesh-with=@{members}",
        ) as two:
            eventually(lambda: members_of(two) == {member: "up"})
            members.write_text("\n")
            two.process.send_signal(signal.SIGHUP)
            assert two.process.stderr is not None
            while b"stays in force" not in (line := two.process.stderr.readline()):
                assert line
            assert (
                f"-mesh-with @{members}: it is empty (write a # comment to mean none)"
                in line.decode()
            )
            assert members_of(two) == {member: "up"}
            members.write_text("# none\n")
            two.process.send_signal(signal.SIGHUP)
            eventually(lambda: members_of(two) == {})


def test_the_secret_file_may_have_comments(tmp_path: Path, secret: Path) -> None:
    secret.write_text(
        f"# since March\n{secret.read_text().strip()}  # 64 digits\n# the next one will follow\n"
    )
    with relay(*QUIET, "-c", str(tmp_path / "k"), f"-mesh-psk-file={secret}") as running:
        assert running.stop()[0] == 0


def test_relays_with_self_signed_certificates_link_by_their_hashes(
    tmp_path: Path, secret: Path
) -> None:
    flags = (
        *QUIET,
        "-http-port=-1",
        f"-mesh-psk-file={secret}",
        "-certmode=manual",
        "-hostname=127.0.0.1",
    )
    with relay(*flags, "-c", str(tmp_path / "one"), f"-certdir={tmp_path / 'certs'}") as one:
        where = f"127.0.0.1:{one.port}"
        pin = one.find(r'"CertName":"(sha256-raw:[0-9a-f]{64})"')
        other = f"localhost:{one.port}"
        members = f"-mesh-with={where}={pin},{other}/127.0.0.1=sha256-raw:{'0' * 64}"
        with relay(*QUIET, "-c", str(tmp_path / "two"), f"-mesh-psk-file={secret}", members) as two:
            eventually(lambda: members_of(two)[where] == "up")
            eventually(lambda: members_of(two)[f"{other}/127.0.0.1"] == "waiting")
            _, said = two.stop()
    assert (
        f"no link to {other}/127.0.0.1: TLS with localhost: " in said
        and "not the pinned one" in said
    )


def test_dev_takes_the_secret_from_the_environment() -> None:
    code, said = refused("-dev", "-mesh-with=a.example")
    assert code == 2 and "-mesh-with needs the region's secret" in said
    code, said = refused("-dev", env={"TAILSCALE_DERPER_MESH_KEY": "ab" * 31})
    assert code == 78 and "TAILSCALE_DERPER_MESH_KEY: a key has 64 hex digits, not 62" in said


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "want one mesh key"),
        ("ab" * 31, "64 hex digits, not 62"),
        ("zz" * 32, "hex digits only"),
        ("00" * 32, "a key must not be all zeros"),
        (f"{'ab' * 32}\n" * 3, "not 3"),
        ("\xff", "not a text file"),
    ],
)
def test_an_invalid_secret_is_refused_without_being_shown(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "mesh.key"
    path.write_bytes(content.encode("latin-1"))
    code, said = refused(*QUIET, "-c", str(tmp_path / "key"), f"-mesh-psk-file={path}")
    assert code == 78
    assert said.count("\n") == 1 and f"mesh key file {path}: " in said and complaint in said
    assert "zz" not in said and "abab" not in said


@pytest.mark.parametrize(
    "member",
    [
        "a/b/c",
        "/b",
        "a/",
        "http://",
        "https://user@a",
        "a b",
        "a:b",
        "a:77777",
        "a=sha256-raw:00",
        f"http://a=sha256-raw:{'0' * 64}",
    ],
)
def test_an_invalid_member_is_refused(tmp_path: Path, secret: Path, member: str) -> None:
    code, said = refused(
        *QUIET, "-c", str(tmp_path / "key"), f"-mesh-psk-file={secret}", f"-mesh-with={member}"
    )
    assert code == 2 and said.count("\n") == 1 and "-mesh-with" in said
    assert "cast" not in said, "Python's own words"


def test_the_secret_file_is_not_read_when_a_server_has_the_secret(tmp_path: Path) -> None:
    answer = ok({"Value": base64.b64encode(b"ab" * 32).decode(), "Version": 1})
    with serving(answer) as service:
        secrets = (
            f"-secrets-url={service.url}",
            f"-secrets-cache-dir={tmp_path / 'copy'}",
            f"-mesh-psk-file={tmp_path / 'nowhere'}",
        )
        with relay(
            *QUIET, "-c", str(tmp_path / "key"), *secrets, env={"no_proxy": "127.0.0.1"}
        ) as running:
            assert "\nmesh: 1 keys, 0 members\n" in running.said


def test_an_unusable_file_of_members_is_named(tmp_path: Path, secret: Path) -> None:
    flags = (*QUIET, "-c", str(tmp_path / "key"), f"-mesh-psk-file={secret}")
    (tmp_path / "members").write_text("a.example\na/b/c\n")
    for name, reason in (
        ("nowhere", "No such file"),
        ("members", "want HOST or HOST/DIALHOST, not 'a/b/c'"),
    ):
        code, said = refused(*flags, f"-mesh-with=@{tmp_path / name}")
        assert code == 78 and said.startswith(
            f"fastderp-relay: -mesh-with @{tmp_path / name}: {reason}"
        )


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    code, said = refused(
        *QUIET, "-c", str(tmp_path / "key"), f"-mesh-psk-file={tmp_path / 'nowhere'}"
    )
    assert code == 78 and "nowhere: No such file or directory" in said
