"""The DERP map: the relays, by region (PROTOCOL §13).

Immutable values for any thread. `HTTPClient.for_region` dials the nodes of a DerpRegion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastderp.errors import DerpMapError
from fastderp.util.json_members import folded

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DerpNode:
    """One relay of a region. PROTOCOL §13.

    Args:
        name: unique in the map. HTTPClient sends the first node's name to another node of the
            region (Ideal-Node).
        region_id: of the region it belongs to.
        host_name: its host, and the name in its certificate.
        cert_name: the name expected in the certificate instead, or `sha256-raw:` and the hex
            SHA-256 of the only one accepted.
        ipv4, ipv6: an address to use instead of looking `host_name` up, empty to look it up, or any
            other text, usually "none", to disable that family.
        stun_port: 0 for 3478, -1 for none.
        stun_only: it is not a relay, and HTTPClient skips it.
        derp_port: 0 for 443.
        insecure_for_tests: accept any certificate, if there is no `cert_name`.
        stun_test_ip: address for STUN in tests; fastderp does not use it.
        can_port_80: it also answers on port 80, for the captive-portal check; fastderp does not use
            it.
    """

    name: str
    region_id: int
    host_name: str
    cert_name: str = ""
    ipv4: str = ""
    ipv6: str = ""
    stun_port: int = 0
    stun_only: bool = False
    derp_port: int = 0
    insecure_for_tests: bool = False
    stun_test_ip: str = ""
    can_port_80: bool = False


@dataclass(frozen=True, slots=True)
class DerpRegion:
    """A place with one or more relays that mesh with each other. PROTOCOL §13.

    HTTPClient uses only the nodes; the program evaluates the other members.

    Args:
        region_id: unique in the map; 900 to 999 are reserved for custom regions.
        region_code: a short name, such as "fra".
        region_name: a display name.
        latitude, longitude: degrees, north and east of 0; both 0 when unknown.
        avoid: not to be made a home.
        no_measure_no_home: neither to be measured nor made a home.
        nodes: in order of preference.
    """

    region_id: int
    region_code: str = ""
    region_name: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    avoid: bool = False
    no_measure_no_home: bool = False
    nodes: tuple[DerpNode, ...] = ()


@dataclass(frozen=True, slots=True)
class DerpMap:
    """All regions. PROTOCOL §13.

    Args:
        regions: by id.
        omit_default_regions: control servers do not add tailscale's regions to these.
        region_scores: by region id, the factor of the measured latency in the choice of a home.
    """

    regions: Mapping[int, DerpRegion] = field(default_factory=dict)
    omit_default_regions: bool = False
    region_scores: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | bytes) -> DerpMap:
        """Read a DERP map from JSON `text`.

        It has the form of control servers and `derpprobe`, or is the `derpMap` of a policy file.
        PROTOCOL §13.

        Member names are matched in any case, unknown ones ignored. A region that is null, with
        which policy files remove one of tailscale's, is left out. Raises DerpMapError naming the
        member that is wrong, for example `Regions.901.Nodes[0].DERPPort`, or missing: `Regions` is
        required, but may be an empty object or null.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DerpMapError(f"the DERP map is not JSON: {error}") from None
        top = _Members(document, "")
        if "derpMap" in top and "Regions" not in top:
            top = top.nested("derpMap")
        top.require("Regions")
        return cls(
            regions={
                _region_id(key, path): _region(value, path)
                for key, value, path in top.mapping("Regions")
                if value is not None
            },
            omit_default_regions=top.flag("omitDefaultRegions"),
            region_scores={
                _region_id(key, path): _number(value, path)
                for key, value, path in top.nested("HomeParams").mapping("RegionScore")
            },
        )


def _region(value: Any, path: str) -> DerpRegion:
    members = _Members(value, path)
    return DerpRegion(
        region_id=members.integer("RegionID"),
        region_code=members.text("RegionCode"),
        region_name=members.text("RegionName"),
        latitude=members.number("Latitude"),
        longitude=members.number("Longitude"),
        avoid=members.flag("Avoid"),
        no_measure_no_home=members.flag("NoMeasureNoHome"),
        nodes=tuple(_node(node, where) for node, where in members.items("Nodes")),
    )


def _node(value: Any, path: str) -> DerpNode:
    members = _Members(value, path)
    node = DerpNode(
        name=members.text("Name"),
        region_id=members.integer("RegionID"),
        host_name=members.text("HostName"),
        cert_name=members.text("CertName"),
        ipv4=members.text("IPv4"),
        ipv6=members.text("IPv6"),
        stun_port=members.port("STUNPort", lowest=-1),
        stun_only=members.flag("STUNOnly"),
        derp_port=members.port("DERPPort"),
        insecure_for_tests=members.flag("InsecureForTests"),
        stun_test_ip=members.text("STUNTestIP"),
        can_port_80=members.flag("CanPort80"),
    )
    if not node.host_name:
        raise DerpMapError(f"{path}.HostName is missing")
    return node


class _Members:
    """The members of a JSON object, read with their expected types.

    Absent and null are the default.
    """

    def __init__(self, value: Any, path: str) -> None:
        members = _dict(value, path or "the DERP map")
        self._values = folded(members)
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name.casefold() in self._values

    def require(self, name: str) -> None:
        if name not in self:
            raise DerpMapError(f"{self._where(name)} is missing")

    def text(self, name: str) -> str:
        return self._get(name, "", _text)

    def flag(self, name: str) -> bool:
        return self._get(name, False, _flag)

    def integer(self, name: str) -> int:
        return self._get(name, 0, _integer)

    def number(self, name: str) -> float:
        return self._get(name, 0.0, _number)

    def port(self, name: str, lowest: int = 0) -> int:
        port = self.integer(name)
        if not lowest <= port <= 65535:
            raise DerpMapError(f"{self._where(name)} is {port}, which is not a port")
        return port

    def nested(self, name: str) -> _Members:
        return self._get(name, _Members({}, self._where(name)), _Members)

    def items(self, name: str) -> list[tuple[Any, str]]:
        """Return each element of a list with its path."""
        elements: list[Any] = self._get(name, [], _list)
        return [(value, f"{self._where(name)}[{at}]") for at, value in enumerate(elements)]

    def mapping(self, name: str) -> list[tuple[str, Any, str]]:
        """Return each key and value of an object with the value's path."""
        members: dict[str, Any] = self._get(name, {}, _dict)
        return [(key, value, f"{self._where(name)}.{key}") for key, value in members.items()]

    def _get(self, name: str, default: _T, read: Callable[[Any, str], _T]) -> _T:
        value = self._values.get(name.casefold())
        return default if value is None else read(value, self._where(name))

    def _where(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def _region_id(key: str, path: str) -> int:
    # `int` also reads spaces, underscores and digits of other scripts.
    if not re.fullmatch("-?[0-9]{1,20}", key):
        raise DerpMapError(f"{path}: a region's id is a number")
    return int(key)


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(path, "a text", value)
    return value


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(path, "true or false", value)
    return value


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong_type(path, "a list", value)
    return value


def _dict(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong_type(path, "an object", value)
    return value


def _integer(value: Any, path: str) -> int:
    if type(value) is not int:
        raise _wrong_type(path, "a whole number", value)
    return value


def _number(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        raise _wrong_type(path, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise DerpMapError(f"{path} is too large") from None


def _wrong_type(path: str, wanted: str, value: object) -> DerpMapError:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return DerpMapError(f"{path} should be {wanted}, not {names.get(type(value), 'a number')}")
