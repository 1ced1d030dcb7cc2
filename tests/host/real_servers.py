"""Servers of Debian's packages on loopback, in the namespaces of an agent: FTP, TLS, SSH, iSCSI, NBD, NFS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hermetic import Agent, wait_until

VSFTPD = """
listen=YES
background=NO
anonymous_enable={anonymous}
local_enable={local}
anon_root={files}
no_anon_password=YES
isolate=NO
isolate_network=NO
seccomp_sandbox=NO
xferlog_enable=NO
secure_chroot_dir={empty}
listen_port={port}
pasv_address=127.0.0.1
{more}
"""
IMPLICIT_TLS = """
ssl_enable=YES
implicit_ssl=YES
allow_anon_ssl=YES
require_ssl_reuse=NO
ssl_ciphers=HIGH
rsa_cert_file={certificate}
rsa_private_key_file={key}
"""
SSHD = """
Port 2222
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""
GANESHA = """
NFS_CORE_PARAM {{
  Protocols = 3; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false;
  allow_set_io_flusher_fail = true;  # in a container; 4.3 does not know it, and says so
}}
EXPORT {{
  Export_Id = 1; Path = {files}; Pseudo = {files}; Protocols = 3; Transports = TCP; SecType = sys;
  Access_Type = RW; Squash = No_Root_Squash; FSAL {{ Name = VFS; }}
}}
"""
# Whoever mounts asks rpcbind for the ports; both keep sockets in /run, which is the host's.
NFS = """
mount -t tmpfs tmpfs /run && mkdir /run/rpcbind /run/ganesha
setpriv --pdeathsig KILL rpcbind -f &
exec ganesha.nfsd -F -f {folder}/ganesha.conf -L {folder}/ganesha.log -p /run/ganesha.pid
"""
SSH = """
IdentityFile {folder}/client
UserKnownHostsFile {folder}/known_hosts
"""


class Servers:
    """What runs beside an agent; every server is ended with it."""

    def __init__(self, agent: Agent, folder: Path, files: Path) -> None:
        self.agent, self.folder, self.files = agent, folder, files
        self._log = folder / "servers.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str, port: int = 0) -> None:
        """Start a server, and wait until it listens."""
        inside = self.agent.hermetic.inside(*command)
        with self._log.open("ab") as log:
            self._processes.append(subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        check = self.agent.hermetic.inside(sys.executable, "-c", probe)
        if port:
            wait_until(lambda: subprocess.run(check, capture_output=True).returncode == 0, 20, f"{port}: {self._log}")

    def script(self, name: str, port: int, *words: str, tcp: bool = True) -> None:
        """Start one of the servers beside this file."""
        path = str(Path(__file__).with_name(name))
        self.run(sys.executable, path, str(self.files), str(port), *words, port=port if tcp else 0)

    def trust(self) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 that everybody in the namespaces trusts, and its key."""
        certificate, key = self.folder / "server.pem", self.folder / "server.key"
        if not certificate.exists():
            self.certificate("server")
            system = "/etc/ssl/certs/ca-certificates.crt"
            self.agent.hermetic.run("mount", "--bind", str(certificate), system)
        return certificate, key

    def ftp(self, port: int = 21, tls: bool = False, user: str = "", password: str = "") -> None:
        """vsftpd, for anonymous readers, or for one user."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        self.files.chmod(0o755)
        certificate, key = self.trust() if tls else (Path(), Path())
        more = IMPLICIT_TLS.format(certificate=certificate, key=key) if tls else ""
        settings = self.folder / f"vsftpd-{port}.conf"
        anonymous, local = ("NO", "YES") if user else ("YES", "NO")
        if user:
            self._account(user, password)
        text = VSFTPD.format(files=self.files, empty=empty, port=port, more=more, anonymous=anonymous, local=local)
        settings.write_text(text)
        self.run("vsftpd", str(settings), port=port)

    def _account(self, user: str, password: str) -> None:
        """An account of the system, in the namespaces alone, whose home is the folder that is served."""
        hashed = subprocess.run(["openssl", "passwd", "-6", password], check=True, capture_output=True, text=True)
        lines = {
            "passwd": f"{user}:x:65000:65000::/srv:/bin/sh\n",
            "shadow": f"{user}:{hashed.stdout.strip()}:1::::::\n",
        }
        # Only root may enter the directories of a test.
        self.agent.hermetic.run("mount", "--bind", str(self.files), "/srv")
        for name, line in lines.items():
            copy = self.folder / name
            copy.write_text(Path("/etc", name).read_text() + line)
            self.agent.hermetic.run("mount", "--bind", str(copy), f"/etc/{name}")

    def certificate(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 that nobody trusts yet, and its key."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        words = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1")
        more = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate))
        subprocess.run(["openssl", *words, *more], check=True, capture_output=True)
        return certificate, key

    def https(self, port: int, behind: int, own: bool = False) -> None:
        """TLS before a web server; with *own* by a certificate that nobody trusts: ``own.pem``."""
        certificate, key = self.certificate("own") if own else self.trust()
        self.script("tls_server.py", port, str(behind), str(certificate), str(key))

    def ssh(self, known: bool = True) -> None:
        """sshd on port 2222, whose host key scp in the namespaces knows, and unless not *known* its client's key."""
        folder = self.folder / "ssh"
        folder.mkdir()
        for name in ("host", "client"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        host_key = " ".join((folder / "host.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:2222 {host_key}\n")
        (folder / "sshd_config").write_text(SSHD.format(folder=folder))
        text = SSH.format(folder=folder)
        (folder / "ssh_config").write_text(text if known else text.replace("IdentityFile", "# IdentityFile"))
        self.agent.hermetic.run("mount", "--bind", str(folder), "/etc/ssh")
        self.agent.hermetic.run("mkdir", "-p", "/run/sshd")
        self.run("/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config"), port=2222)

    def iscsi(self, name: str, file: Path, user: str = "", password: str = "") -> None:
        """tgtd with one target, LUN 1; with *user* only for him (CHAP)."""
        socket = f"TGT_IPC_SOCKET={self.folder}/tgtd"
        self.run("env", socket, "tgtd", "-f", "--iscsi", "portal=127.0.0.1:3260", port=3260)
        admin = ("env", socket, "tgtadm", "--lld", "iscsi")
        target = ("--mode", "target", "--op", "new", "--tid", "1", "-T", name)
        unit = ("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", str(file))
        account = ("--mode", "account", "--op")
        chap = (
            (*account, "new", "--user", user, "--password", password),
            (*account, "bind", "--tid", "1", "--user", user),
        )
        bind = ("--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
        for words in (target, unit, *(chap if user else ()), bind):
            self.agent.hermetic.run(*admin, *words)

    def nfs(self) -> None:
        """nfs-ganesha with the folder that is served, by NFS 3."""
        (self.folder / "ganesha.conf").write_text(GANESHA.format(files=self.files))
        self.run("unshare", "-m", "sh", "-c", NFS.format(folder=self.folder), port=20048)

    def nbd(self, export: str, file: Path) -> None:
        """qemu-nbd with one export."""
        self.run("qemu-nbd", "-t", "-f", "raw", "-b", "127.0.0.1", "-p", "10809", "-x", export, str(file), port=10809)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()
