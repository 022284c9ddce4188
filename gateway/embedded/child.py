"""Becomes another program that does not outlive its parent.

Run as `python -I -S child.py PARENT SIGNAL ACCOUNT PROGRAM...`: in a fresh interpreter, because between fork and exec a
lock of another thread could hang it. It imports the standard library only and takes 20 ms.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

_SET_PARENT_DEATH_SIGNAL = 1
_SET_KEEP_CAPABILITIES = 8
_SET_SECURE_BITS = 28
_NO_SETUID_FIXUP = 1 << 2
_AMBIENT = 47
_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_DAC_OVERRIDE = 1
_DAC_READ_SEARCH = 2
_CANNOT = 127

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def main(argv: list[str]) -> None:
    """Replace this interpreter by `PROGRAM...`; ACCOUNT is `-` or the system account to drop root for."""
    parent, signal_number, account, *program = argv
    if account != "-":
        _drop_root(account)
    # After the change of account, which clears it.
    _checked(_libc.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal_number), 0, 0, 0))
    if os.getppid() != int(parent):
        sys.exit(_CANNOT)  # the parent died before the line above
    os.execv(program[0], program)  # noqa: S606 - the program and its arguments are the supervisor's own


def _drop_root(account: str) -> None:
    """Become `account`, keeping only the right to walk through directories that are closed to it.

    Postgres refuses to run as root. The data directory (0700) and a checkout below /root stay as they are: opening
    parent directories to others would be worse than letting this one program pass through them.
    """
    entry = pwd.getpwnam(account)
    capability = _walking_capability()
    _checked(_libc.prctl(_SET_KEEP_CAPABILITIES, 1, 0, 0, 0))
    # access(2) ignores capabilities without this, and initdb asks it about its programs. Where it is forbidden (a
    # container without CAP_SETPCAP), programs must lie where everybody can reach them.
    _libc.prctl(_SET_SECURE_BITS, _NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    if capability is None:
        return
    mask = 1 << capability
    sets = (_Set * 2)(_Set(mask, mask, mask), _Set(0, 0, 0))
    _checked(_libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets))
    _checked(_libc.prctl(_AMBIENT, _AMBIENT_RAISE, capability, 0, 0))


def _walking_capability() -> int | None:
    """The weakest right at hand to pass closed directories; containers often have the second only."""
    with open("/proc/self/status", encoding="ascii") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return next((one for one in (_DAC_READ_SEARCH, _DAC_OVERRIDE) if held >> one & 1), None)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main(sys.argv[1:])
