"""Owners of runs and adapters: the file owner.json in their folders, and what a person may see and change.

A folder without this file belongs to the person at this machine, or on a page with logins to the admins.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hra_diffusion import records
from hra_diffusion.files import write_text

FILE = "owner.json"


class Owner(BaseModel):
    """Content of the file.

    Attributes:
        owner: a login, or "#" and the name of the folder of a visitor without login; "" for none.
        shared: whether everyone who can log in sees the run or adapter.
    """

    model_config = ConfigDict(frozen=True)

    owner: str = ""
    shared: bool = False


UNOWNED = Owner()


def read(folder: Path) -> Owner:
    """Return the owner of a run's or adapter's folder, also of one in the trash; ``UNOWNED`` without the file."""
    return records.read(folder / FILE, Owner, UNOWNED)


def write(folder: Path, owner: Owner) -> None:
    """Replace the owner of a folder, which is created if needed."""
    write_text(folder / FILE, owner.model_dump_json())


@dataclass(frozen=True)
class Person:
    """Somebody who uses the page.

    Attributes:
        name: as in ``Owner.owner``.
        is_admin: whether they see and change everything.
        is_guest: whether they have no login: they also see what has no owner, and nothing that logins share.
    """

    name: str
    is_admin: bool = False
    is_guest: bool = False

    def may_see(self, owner: Owner) -> bool:
        """Whether they see what belongs to ``owner``."""
        return self.may_change(owner) or (not owner.owner if self.is_guest else owner.shared)

    def may_change(self, owner: Owner) -> bool:
        """Whether they may stop, rename, share or delete what belongs to ``owner``, and see its photos."""
        return self.is_admin or (self.name != "" and owner.owner == self.name)

    @property
    def visible(self) -> tuple[str, tuple[str, ...]]:
        """The condition of ``may_see`` on rows of the index's table ``folders``, and its values."""
        if self.is_admin:
            return "1", ()
        others = "folders.owner = ''" if self.is_guest else "folders.shared"
        return f"(folders.owner != '' AND folders.owner = ? OR {others})", (self.name,)


LOCAL = Person("", is_admin=True)
"""The person at this machine: on the command line, and on a page that only this machine reaches."""
