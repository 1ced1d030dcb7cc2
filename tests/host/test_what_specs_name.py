"""What specs name on the real thing: no start empties the file of another, and no pipe stops the daemon."""

from __future__ import annotations

import os

import pytest
from hermetic import Agent, wait_until
from small import vm, wipe

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

HEAD = "---\napiVersion: kvmd.dev/v1alpha1\n"


def console(name: str, path: object) -> str:
    """A guest whose console is written there."""
    return vm(name, "Always", more=f"  devices: {{serial: [{{name: console, file: {path}}}]}}")


def test_specs_name_what_is_theirs_and_tell_nobody_what_is_sensitive(agent: Agent) -> None:
    agent.start()
    what_another_has_is_not_emptied_and_no_pipe_holds_up_the_rest(agent)
    what_is_sensitive_is_told_to_nobody(agent)
    agent.stop()
    wipe(agent.hermetic)


def what_another_has_is_not_emptied_and_no_pipe_holds_up_the_rest(agent: Agent) -> None:
    pool, ledger, fifo = (agent.folder / name for name in ("pool", "state/ledger", "fifo"))
    link, foreign, log = agent.folder / "link", agent.folder / "theirs.img", agent.folder / "web.log"
    pool.mkdir()
    link.symlink_to(pool)
    foreign.write_bytes(bytes(4096))
    os.mkfifo(fifo, 0o600)
    storage = f"kind: StoragePool\nmetadata: {{name: p}}\nspec: {{path: {pool}}}\n{HEAD}"
    storage += "kind: Volume\nmetadata: {name: root}\nspec: {pool: p, capacity: 8Mi}\n"
    agent.write("own.yaml", HEAD + storage + vm("own", "Once", more="  disks: [{name: root, volume: root}]"))
    agent.wait_ready("Volume/root", "VirtualMachine/own", seconds=60)
    files = (pool / "root.qcow2", ledger, foreign)
    sizes = [file.stat().st_size for file in files]
    assert all(sizes)
    odd = {"volume": link / "root.qcow2", "journal": ledger, "theirs": foreign, "pipe": fifo}
    texts = [console(name, path) for name, path in odd.items()]
    texts.append(
        vm("second", "Always", more=f"  disks: [{{name: root, path: {pool}/root.qcow2, format: qcow2}}]")
        + vm("word", more=f"  devices: {{graphics: {{passwordFrom: {{file: {fifo}}}}}}}")
        + console("web", log)
    )
    agent.write("odd.yaml", "".join(texts))
    agent.wait_ready("VirtualMachine/web", seconds=60)  # nothing holds it up
    reasons = {name: agent.condition(f"VirtualMachine/{name}", "Stalled") for name in odd}
    assert {name: found and found["reason"] for name, found in reasons.items()} == dict.fromkeys(odd, "Refused")
    assert agent.condition("VirtualMachine/second", "Conflict")
    assert "no plain file" in str(agent.condition("VirtualMachine/word", "Blocked"))
    assert {"web", "own"} == set(agent.hermetic.virsh("list", "--name").split())
    assert [file.stat().st_size for file in files] == sizes
    log.write_bytes(bytes(4096))  # whatever it printed is its own, and a start may empty it
    agent.kvmd("restart", "vm/web")
    wait_until(lambda: log.stat().st_size != 4096, 60, "its own log begins anew")
    agent.wait_ready("VirtualMachine/web", seconds=60)


def what_is_sensitive_is_told_to_nobody(agent: Agent) -> None:
    words = (
        'userData: "#cloud-config\\npassword: hunter2\\n", networkConfig: {version: 2, wifis: {w0: {key: wifi-word}}}'
    )
    agent.write("sec.yaml", vm("sec", more=f"  cloudInit: {{{words}}}"))
    agent.wait_ready("VirtualMachine/sec", seconds=60)
    told = [agent.http(f"/api/v1/{path}")[1] for path in ("objects", "events", "plan")]
    told += [agent.kvmd("describe", "vm/sec"), agent.kvmd("get", "vm", "sec", "-o", "yaml")]
    told += [agent.hermetic.virsh("dumpxml", "sec")]
    assert "(hidden)" in told[0]
    assert "(hmac:" in told[-1]
    assert not any(word in text for text in told for word in ("hunter2", "wifi-word"))
