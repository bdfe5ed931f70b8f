"""Reading DERP maps (PROTOCOL section 13)."""

import json
from typing import Any

import pytest

from fastderp.errors import DerpMapError
from fastderp.wire.derp_map import DerpMap, DerpNode, DerpRegion


def test_a_full_map_is_read() -> None:
    text = """{
        "Regions": {"901": {
            "RegionID": 901, "RegionCode": "home", "RegionName": "Home",
            "Latitude": 48, "Longitude": 11.5, "Avoid": true, "NoMeasureNoHome": true,
            "Nodes": [
                {"Name": "901a", "RegionID": 901, "HostName": "derp.example.com", "CertName": "other.example.com",
                 "IPv4": "192.0.2.1", "IPv6": "none", "STUNPort": -1, "STUNOnly": false, "DERPPort": 8443,
                 "InsecureForTests": true, "STUNTestIP": "192.0.2.2", "CanPort80": true},
                {"Name": "901b", "RegionID": 901, "HostName": "stun.example.com", "STUNOnly": true}
            ]}},
        "omitDefaultRegions": true,
        "HomeParams": {"RegionScore": {"901": 0.5}}
    }"""
    first = DerpNode(
        "901a",
        901,
        "derp.example.com",
        cert_name="other.example.com",
        ipv4="192.0.2.1",
        ipv6="none",
        stun_port=-1,
        derp_port=8443,
        insecure_for_tests=True,
        stun_test_ip="192.0.2.2",
        can_port_80=True,
    )
    second = DerpNode("901b", 901, "stun.example.com", stun_only=True)
    region = DerpRegion(901, "home", "Home", 48.0, 11.5, True, True, (first, second))
    assert DerpMap.from_json(text) == DerpMap({901: region}, True, {901: 0.5})


def test_names_are_matched_in_any_case_and_unknown_members_are_ignored() -> None:
    read = DerpMap.from_json(
        '{"REGIONS":{"1":{"regionid":1,"later":[],"nodes":[{"hostname":"a","Later":{}}]}},"x":1}'
    )
    assert read.regions[1].nodes[0].host_name == "a"


def test_the_derp_map_of_a_policy_file_has_its_regions() -> None:
    policy = '{"acls":[],"DERPMap":{"OmitDefaultRegions":true,"Regions":{"900":{"RegionID":900}}}}'
    assert DerpMap.from_json(policy) == DerpMap({900: DerpRegion(900)}, True)


@pytest.mark.parametrize(
    "text", ['{"Regions":null}', '{"Regions":{},"HomeParams":null}', '{"derpMap":{"Regions":{}}}']
)
def test_empty_maps_are_maps(text: str) -> None:
    assert DerpMap.from_json(text) == DerpMap()


def test_a_region_that_is_null_is_left_out() -> None:
    policy = '{"derpMap":{"Regions":{"1":null,"900":{"RegionID":900},"2":null}}}'
    assert DerpMap.from_json(policy) == DerpMap({900: DerpRegion(900)})


def node_with(**members: Any) -> str:
    node = {"Name": "1a", "RegionID": 1, "HostName": "a"} | members
    return json.dumps({"Regions": {"1": {"RegionID": 1, "Nodes": [node]}}})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "the DERP map should be an object, not a list"),
        ("null", "the DERP map should be an object, not null"),
        ("{}", "^Regions is missing"),
        ('{"derpMap":{}}', r"^derpMap\.Regions is missing"),
        ('{"derpMap":null}', r"^derpMap\.Regions is missing"),
        ('{"derpMap":[]}', "derpMap should be an object, not a list"),
        (
            '{"derpMap":{"Regions":{"1":5}}}',
            r"derpMap\.Regions\.1 should be an object, not a number",
        ),
        ('{"Regions":[]}', "Regions should be an object, not a list"),
        ('{"Regions":{"home":{}}}', "Regions.home: a region's id is a number"),
        ('{"Regions":{"1_0":{}}}', "Regions.1_0: a region's id is a number"),
        ('{"Regions":{" 1":{}}}', "Regions. 1: a region's id is a number"),
        ('{"Regions":{"٣":{}}}', "Regions.٣: a region's id is a number"),
        ('{"Regions":{"' + "1" * 5000 + '":{}}}', "a region's id is a number"),
        ('{"Regions":{"1":5}}', r"Regions\.1 should be an object, not a number"),
        (
            '{"Regions":{"1":{"RegionID":"1"}}}',
            r"Regions\.1\.RegionID should be a whole number, not a text",
        ),
        (
            '{"Regions":{"1":{"Latitude":true}}}',
            r"Regions\.1\.Latitude should be a number, not true or false",
        ),
        ('{"Regions":{"1":{"Latitude":1' + "0" * 400 + "}}}", r"Regions\.1\.Latitude is too large"),
        ('{"Regions":{"1":{"Nodes":{}}}}', r"Regions\.1\.Nodes should be a list, not an object"),
        (
            '{"Regions":{"1":{"Nodes":[null]}}}',
            r"Regions\.1\.Nodes\[0\] should be an object, not null",
        ),
        (node_with(HostName=""), r"Regions\.1\.Nodes\[0\]\.HostName is missing"),
        (node_with(HostName=7), r"Regions\.1\.Nodes\[0\]\.HostName should be a text, not a number"),
        (node_with(STUNOnly="yes"), r"Nodes\[0\]\.STUNOnly should be true or false, not a text"),
        (node_with(DERPPort=-1), r"Nodes\[0\]\.DERPPort is -1, which is not a port"),
        (node_with(DERPPort=65536), r"Nodes\[0\]\.DERPPort is 65536, which is not a port"),
        (node_with(STUNPort=-2), r"Nodes\[0\]\.STUNPort is -2, which is not a port"),
        (
            '{"Regions":{},"HomeParams":{"RegionScore":{"1":"a"}}}',
            r"HomeParams\.RegionScore\.1 should be a number",
        ),
    ],
)
def test_an_error_in_a_map_is_named(text: str, complaint: str) -> None:
    with pytest.raises(DerpMapError, match=complaint):
        DerpMap.from_json(text)
