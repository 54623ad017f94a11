"""Whose rows a caller may see: a token in, one `Access` out, without which no query about a team's data can be written.

The chassis makes it once, where a request arrives. A query takes it as a parameter and adds `access.only(team column)`;
background work of the platform says `EVERY_TEAM`. A row of another team is answered like one that does not exist.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, true

Scope = Literal["read", "deploy", "admin", "reveal", "platform", "service"]
"""`read`: look. `deploy`: apps, deployments, verbs. `admin`: `read`, `deploy`, content of volumes, tokens of the team.
`reveal`: values of config vars. `platform`: what the other scopes allow, for every team. `service`: another service of
this installation, which may do everything."""

GRANTED: tuple[Scope, ...] = ("read", "deploy", "admin", "reveal", "platform")
"""Scopes of tokens that people hold. `service` belongs to the one token that services share."""
OPERATOR: tuple[Scope, ...] = GRANTED
"""Scopes of the operator's token."""


@dataclass(frozen=True, slots=True)
class Access:
    """The teams whose rows a query reads and changes."""

    teams: frozenset[str] | None
    """Names of teams; None: every team."""

    def sees(self, team: str | None) -> bool:
        """Return whether a row of that team may be shown; None: a row whose team is not known."""
        return self.teams is None or team in self.teams

    def only(self, team: ColumnElement[Any]) -> ColumnElement[bool]:
        """Return the condition on a column that holds the team."""
        return true() if self.teams is None else team.in_(sorted(self.teams))


EVERY_TEAM = Access(None)
"""For background work of the platform, and for rows that a query with the caller's access has found already."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a valid token."""

    name: str
    """The token's name."""
    team: str
    """The team that owns what the caller creates."""
    scopes: frozenset[str]
    more_teams: frozenset[str] = frozenset()
    """Other teams whose rows the caller sees."""

    def may(self, scope: Scope) -> bool:
        """Return whether this caller has the scope.

        `admin` implies `read` and `deploy`; `service` implies all; an `admin` of every team may do what services may.
        """
        if scope in self.scopes or "service" in self.scopes:
            return True
        if scope == "service":
            return self.scopes >= {"admin", "platform"}
        return "admin" in self.scopes and scope in {"read", "deploy"}

    @property
    def access(self) -> Access:
        """The teams whose rows this caller sees."""
        if self.scopes & {"platform", "service"}:
            return EVERY_TEAM
        return Access(self.more_teams | {self.team})
