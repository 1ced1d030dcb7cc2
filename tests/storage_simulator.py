"""Storage of the simulated host: pools, volumes and images as facts, refusing what the real one refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace

from kvmd import ops
from kvmd.observed import Domain, Fact, File, Holders, Image, Key, Pool, Server, Snapshot, Volume

IMAGE_BYTES = 2 << 30
_inodes = itertools.count(100)


class StorageRefused(Exception):
    """The real host would not do this."""


def execute(facts: MutableMapping[Key, Fact], operation: ops.StorageOp) -> None:
    """Carry out one operation on the facts."""
    match operation:
        case ops.PoolDefine() | ops.PoolStart() | ops.PoolSetAutostart() | ops.PoolMark() | ops.PoolUndefine():
            _execute_pool(facts, operation)
        case ops.ImageFetch(name=name, format=format, mark=mark):
            path = f"/var/lib/kvmd/images/{name}"
            facts[Key("image", name)] = Image(name, name, path, format, 1 << 29, IMAGE_BYTES, "sha256:0", mark)
            _supersede(facts, operation)
        case ops.ServerAsk(url=url, other=other):
            direct = not other or "/plain/" not in url
            facts[Key("server", url)] = Server(url, direct, "QEMU and the server can" if direct else "no byte ranges")
        case ops.ImageMark(name=name, mark=mark):
            image = facts[Key("image", name)]
            assert isinstance(image, Image)
            facts[Key("image", name)] = replace(image, mark=mark)
        case ops.ImageRemove(name=name, path=path):
            _refuse_in_use(facts, path)
            del facts[Key("image", name)]
        case ops.VolumeCreate():
            _create(facts, operation)
        case ops.VolumeGrow(capacity=capacity):
            volume = _volume(facts, operation.name)
            _demand(capacity >= volume.capacity, "a volume never shrinks")
            facts[Key("volume", operation.name)] = replace(volume, capacity=capacity)
        case ops.VolumeMark(mark=mark):
            facts[Key("volume", operation.name)] = replace(_volume(facts, operation.name), mark=mark)
        case ops.VolumeTrash(path=path):
            _refuse_in_use(facts, path)
            del facts[Key("volume", operation.name)]
        case ops.TrashEmpty(path=path):
            del facts[Key("trash", path)]
        case ops.SeedWrite(name=name, path=path):
            facts[Key("seed", name)] = File(path, "regular", 1, path)
        case ops.SeedRemove():
            for key in [key for key in facts if key.type == "seed" and key.name.startswith(f"{operation.name}-")]:
                del facts[key]
        case _:
            raise StorageRefused(f"no way to {operation.describe()}")


def _execute_pool(facts: MutableMapping[Key, Fact], operation: ops.StorageOp) -> None:
    match operation:
        case ops.PoolDefine(name=name, uuid=uuid, path=path, xml=xml, mark=mark):
            before = facts.get(Key("pool", name))
            active = isinstance(before, Pool) and before.active
            facts[Key("pool", name)] = Pool(name, uuid, "dir", path, active, xml, mark=mark)
        case ops.PoolStart():
            _pool(facts, operation.name, lambda pool: replace(pool, active=True))
        case ops.PoolSetAutostart(enabled=enabled):
            _pool(facts, operation.name, lambda pool: replace(pool, autostart=enabled))
        case ops.PoolMark(mark=mark):
            _pool(facts, operation.name, lambda pool: replace(pool, mark=mark))
        case ops.PoolUndefine():
            del facts[Key("pool", operation.name)]


def paths(facts: Mapping[Key, Fact]) -> set[str]:
    """Every file of storage that is there."""
    seeds = {fact.path for key, fact in facts.items() if key.type == "seed" and isinstance(fact, File)}
    stored = {fact.path for fact in facts.values() if isinstance(fact, Image | Volume)}
    overlays = {item.path for fact in facts.values() if isinstance(fact, Snapshot) for item in fact.overlays}
    return seeds | stored | overlays


def _demand(condition: bool, why: str) -> None:
    if not condition:
        raise StorageRefused(why)


def _pool(facts: MutableMapping[Key, Fact], name: str, change: Callable[[Pool], Pool]) -> None:
    pool = facts.get(Key("pool", name))
    _demand(isinstance(pool, Pool), f"no pool {name}")
    assert isinstance(pool, Pool)
    facts[Key("pool", name)] = change(pool)


def _volume(facts: MutableMapping[Key, Fact], name: str) -> Volume:
    volume = facts.get(Key("volume", name))
    _demand(isinstance(volume, Volume), f"no volume {name}")
    assert isinstance(volume, Volume)
    return volume


def _create(facts: MutableMapping[Key, Fact], operation: ops.VolumeCreate) -> None:
    _demand(Key("volume", operation.name) not in facts, f"{operation.path} is there")
    pool = facts.get(Key("pool", operation.name.partition("/")[0]))
    _demand(isinstance(pool, Pool) and operation.path.startswith(pool.path), "no such pool")
    origin = operation.backing or operation.source
    _demand(not origin or Key("image", origin.rpartition("/")[2]) in facts, f"no {origin}")
    identity = f"{operation.name}#{next(_inodes)}"
    facts[Key("volume", operation.name)] = Volume(
        operation.name,
        identity,
        operation.path,
        operation.format,
        operation.capacity or IMAGE_BYTES,
        operation.backing,
        operation.backing_format,
        mark=replace(operation.mark, object_id=identity),
    )


def _supersede(facts: MutableMapping[Key, Fact], operation: ops.ImageFetch) -> None:
    for key, image in list(facts.items()):
        if not isinstance(image, Image) or image.mark is None or image.name == operation.name:
            continue
        if operation.mark is not None and image.mark.ref == operation.mark.ref:
            facts[key] = replace(image, mark=replace(image.mark, generation=0))


def look_at_holders(facts: MutableMapping[Key, Fact]) -> None:
    """Who stands on which file, as facts; those that did not change are the same objects as before."""
    found: dict[Key, Fact] = {}
    named = (fact.path for fact in facts.values() if isinstance(fact, File))
    for path in dict.fromkeys((*paths(facts), *named)):
        domains = [fact.name for fact in facts.values() if isinstance(fact, Domain) and _names(fact, path)]
        overlays = [fact.path for fact in facts.values() if isinstance(fact, Volume) and fact.backing == path]
        if domains or overlays:
            found[Key("holders", path)] = Holders(path, tuple(sorted(domains)), tuple(sorted(overlays)))
    for key in [key for key in facts if key.type == "holders" and key not in found]:
        del facts[key]
    for key, fact in found.items():
        if facts.get(key) != fact:
            facts[key] = fact


def _names(domain: Domain, path: str) -> bool:
    text = f"{domain.config}{domain.live}"
    return f'"{path}"' in text or f">{path}<" in text


def _refuse_in_use(facts: MutableMapping[Key, Fact], path: str) -> None:
    for fact in facts.values():
        _demand(not isinstance(fact, Domain) or not _names(fact, path), f"{path} is used by a domain")
        _demand(not isinstance(fact, Volume) or fact.backing != path, f"{path} carries an overlay")
