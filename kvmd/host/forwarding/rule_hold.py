"""Keep what a network's firewall rules let through let through while libvirt writes those rules anew.

libvirt does so whenever a reservation, a range or the link that guests go out by changes, rule by rule, and each time
what rejects comes before what accepts: packets were lost for 0.1 to 1 s. Copies of what accepts, marked as ours,
stand meanwhile in the chain that is asked first.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator

from kvmd.host.preflight.tools import SEARCH_PATH, output_of

MARK = "kvmd-hold"
_FAMILIES = {"iptables": "ip", "ip6tables": "ip6"}
_ACCEPTS = ("LIBVIRT_FWX", "LIBVIRT_FWI", "LIBVIRT_FWO")
_NFT_ACCEPTS = ("guest_cross", "guest_input", "guest_output")
_TRANSLATES = (" -j MASQUERADE", " -j SNAT")


@contextlib.contextmanager
def held(bridge: str) -> Iterator[None]:
    """Hold the rules of the network that has that bridge."""
    release(bridge)  # what somebody who could not take them away left
    for tool in _FAMILIES:
        _iptables(tool, [*copies(output_of(f"{tool}-save") or "", bridge)])
    _nft([line for family in _FAMILIES.values() for line in nft_copies(family, _nft_list(family), bridge)])
    try:
        yield
    finally:
        release(bridge)


def release(bridge: str = "") -> None:
    """Take our copies away, and nothing else; where no bridge is named, those that a kvmd left that died."""
    for tool, family in _FAMILIES.items():
        lines = [line for line in _rules(output_of(f"{tool}-save") or "") if _comment(bridge) in _quoted(line[1])]
        _iptables(tool, [(table, line.replace("-A ", "-D ", 1)) for table, line in lines])
        _nft([*_nft_deletions(family, _nft_list(family), bridge)])


def _comment(bridge: str) -> str:
    """How the comment of a copy begins, of one bridge or of any."""
    return f'"{MARK}-{bridge}"' if bridge else f'"{MARK}-'


def _quoted(line: str) -> str:
    """With the comment in quotation marks, as some versions print it and others do not."""
    return re.sub(r'--comment "?([^" ]+)"?', r'--comment "\1"', line)


def _rules(saved: str) -> Iterator[tuple[str, str]]:
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A LIBVIRT_"):
            yield table, line


def copies(saved: str, bridge: str) -> Iterator[tuple[str, str]]:
    """Table and command of each copy: of what accepts in the first chain, of what translates at the end."""
    networks = set()
    for table, line in _rules(saved):
        words = line.split()
        if table == "filter" and words[1] in _ACCEPTS and bridge in words and line.endswith(" -j ACCEPT"):
            networks |= {words[i + 1] for i, word in enumerate(words) if word in ("-s", "-d")}
            yield table, _marked(line, bridge).replace(f"-A {words[1]}", "-I LIBVIRT_FWX", 1)
    for table, line in _rules(saved):
        if table == "nat" and any(word in line for word in _TRANSLATES) and line.split()[3] in networks:
            yield table, _marked(line, bridge)


def _marked(line: str, bridge: str) -> str:
    rule, jump, verdict = line.rpartition(" -j ")
    return f'{rule} -m comment --comment "{MARK}-{bridge}"{jump}{verdict}'


def _iptables(tool: str, commands: list[tuple[str, str]]) -> None:
    """All of them at once, or none."""
    if not commands:
        return
    tables = dict.fromkeys(table for table, _ in commands)
    text = "".join(f"*{name}\n{_lines(line for table, line in commands if table == name)}COMMIT\n" for name in tables)
    _run([f"{tool}-restore", "-w", "5", "--noflush"], text)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _nft_list(family: str) -> str:
    return output_of("nft", "-a", "-s", "list", "table", family, "libvirt_network") or ""


def _nft_rules(listed: str) -> Iterator[tuple[str, str, str]]:
    """Chain, rule and handle."""
    chain = ""
    for line in map(str.strip, listed.splitlines()):
        if found := re.match(r"chain (\S+) \{", line):
            chain = found[1]
        elif found := re.fullmatch(r"(.*) # handle (\d+)", line):
            yield chain, found[1].replace(" counter ", " "), found[2]


def nft_copies(family: str, listed: str, bridge: str) -> Iterator[str]:
    """The same for libvirt's own table."""
    networks, name = set(), f'"{bridge}"'
    for chain, rule, _ in _nft_rules(listed):
        if chain in _NFT_ACCEPTS and name in rule and rule.endswith(" accept"):
            networks |= set(re.findall(r"[sd]addr (\S+)", rule))
            yield f'insert rule {family} libvirt_network guest_cross {rule} comment "{MARK}-{bridge}"'
    for chain, rule, _ in _nft_rules(listed):
        translates = re.search(r"saddr (\S+) .*(masquerade|snat)", rule) if chain == "guest_nat" else None
        if translates and translates[1] in networks:
            yield f'add rule {family} libvirt_network guest_nat {rule} comment "{MARK}-{bridge}"'


def _nft_deletions(family: str, listed: str, bridge: str) -> Iterator[str]:
    for chain, rule, handle in _nft_rules(listed):
        if f"comment {_comment(bridge)}" in rule:
            yield f"delete rule {family} libvirt_network {chain} handle {handle}"


def _nft(commands: list[str]) -> None:
    if commands:
        _run(["nft", "-f", "-"], _lines(commands))


def _run(command: list[str], text: str) -> None:
    """Whether it worked the rules show: without the copies a change costs packets, as it does without kvmd."""
    environment = {**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, input=text, text=True, capture_output=True, timeout=10, check=False, env=environment)
