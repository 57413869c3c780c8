"""How calls become a graph, what runs next, and what happens when something ends."""
