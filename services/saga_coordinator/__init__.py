"""Events in; the next command, the saga log and the answers about it out."""
