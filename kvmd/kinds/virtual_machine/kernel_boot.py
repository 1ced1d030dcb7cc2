"""The spec of a kernel that is booted from the host."""

from __future__ import annotations

from pydantic import model_validator

from kvmd.api.quantity import HostPath, Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf


class BootFile(SpecModel):
    """A kernel or initial RAM disk on the host."""

    path: HostPath | None = leaf(
        None, about="File on the host.", example="/var/lib/kvmd/boot/vmlinuz", update=Update.NEXT_BOOT
    )
    image: Text | None = leaf(None, about="An Image.", example="vmlinuz", update=Update.NEXT_BOOT)

    @model_validator(mode="after")
    def _agree(self) -> BootFile:
        if (self.path is None) == (self.image is None):
            raise ValueError("write exactly one of `path` and `image`")
        return self


class KernelBoot(SpecModel):
    """Boot a kernel from the host (qemu -kernel, -initrd, -append)."""

    kernel: BootFile = branch(about="The kernel.")
    initrd: BootFile | None = branch(None, about="The initial RAM disk.")
    args: Text | None = leaf(
        None, about="Kernel command line.", example="console=ttyS0 root=/dev/vda1", update=Update.NEXT_BOOT
    )
