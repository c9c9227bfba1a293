"""requirements.lock and the Dockerfiles: the versions of constraints.txt, complete, each with hashes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("write_lock", ROOT / "scripts" / "write_lock.py")
write_lock = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(write_lock)
APART = {"torch", "kasatune"}  # installed by the Dockerfiles themselves


def pins(path: Path) -> dict[str, tuple[str, list[str]]]:
    """(version, SHA-256 of its files) by name, of a file in the form of pip."""
    text = re.sub(r"#.*", "", path.read_text(encoding="utf-8")).replace("\\\n", " ")
    found = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, version = re.match(r"([\w.-]+)==(\S+)", line).groups()
        found[canonicalize_name(name)] = version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
    return found


LOCKED = pins(ROOT / "requirements.lock")
CONSTRAINTS = pins(ROOT / "constraints.txt")


def test_every_version_is_that_of_the_constraints_and_has_hashes():
    assert len(LOCKED) > 50
    assert {name: version for name, (version, _) in LOCKED.items()} == {
        name: CONSTRAINTS.get(name, ("not in constraints.txt",))[0] for name in LOCKED
    }
    assert all(hashes for _, hashes in LOCKED.values())


def test_it_holds_everything_that_its_extras_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *(line for extra in write_lock.EXTRAS for line in extras[extra])]
    waiting = [Requirement(line) for line in direct]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "kasatune" or (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        assert name in LOCKED or name in APART, f"{name} is not in requirements.lock: make lock"
        assert (Version(CONSTRAINTS[name][0]) in requirement.specifier) or not requirement.specifier
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                waiting.append(needed)


def test_torch_is_installed_by_itself_at_the_version_of_the_constraints():
    version = CONSTRAINTS["torch"][0]
    cpu, hashes = pins(ROOT / "docker" / "torch-cpu.lock")["torch"]
    assert (cpu, len(hashes)) == (f"{version}+cpu", 1)
    assert pins(ROOT / "docker" / "torch-cuda.txt")["torch"] == (version, [])
    assert not APART & set(LOCKED)


def test_the_images_copy_files_that_exist_and_that_docker_is_given():
    allowed = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    for path in sorted((ROOT / "docker").glob("*.Dockerfile")):
        copied = [
            source
            for line in re.findall(r"^COPY (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            for source in line.split()[:-1]
        ]
        assert "requirements.lock" in copied
        for source in copied:
            assert (ROOT / source).exists(), f"{path.name} copies {source}"
            assert source.split("/")[0] in allowed, f".dockerignore hides {source}"
