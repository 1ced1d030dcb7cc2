"""Every error of kvmd, in one tree; the class says what the loop does next.

KvmdError                    has a message (what, where, why) and a hint (the next thing to type)
├── SettingsError            the settings file is wrong: do not start
├── SpecError                a document is wrong: hold its last good version
├── Retry                    may pass by itself: try again after a backoff
│   ├── BackendUnavailable   libvirt does not answer: reconnect first
│   ├── Unknown              a deadline passed: look again before anything else
│   └── Stale                the object changed under the plan: plan again
├── Blocked                  waits for another object: that object wakes it
├── Refused                  a person or a policy must decide: wait for a new spec or an approval
│   └── Conflict             another object has what this one wants: one of the specs must change
└── Unsupported              this host cannot: wait for a new spec or a new start
"""

from __future__ import annotations


class KvmdError(Exception):
    """The root: *message* says what, where and why, *hint* what to type next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class SettingsError(KvmdError):
    """The settings cannot be used."""


class SpecError(KvmdError):
    """A spec cannot be used."""


class Retry(KvmdError):
    """The act failed in a way that may pass by itself."""


class BackendUnavailable(Retry):
    """libvirt (or the kernel interface) cannot be reached."""


class Unknown(Retry):
    """A call passed its deadline; nobody knows whether it was carried out."""


class Stale(Retry):
    """The object is no longer what the plan saw."""


class Blocked(KvmdError):
    """Another object must be there first."""


class Refused(KvmdError):
    """kvmd will not do this until a person or a new spec says so."""


class Conflict(Refused):
    """Another object has what this one wants, and keeps it."""


class Unsupported(KvmdError):
    """This host, kernel, libvirt or QEMU lacks what is asked for."""
