"""Detection: what an app is, how it is built and how it runs, from its files alone."""

from services.source.plan.detect import plan
from services.source.plan.refusals import Capabilities
from services.source.plan.tree import Tree, tree_of_archive, tree_of_folder

__all__ = ["Capabilities", "Tree", "plan", "tree_of_archive", "tree_of_folder"]
