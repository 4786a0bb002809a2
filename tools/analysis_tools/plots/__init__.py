"""Pictures that only the tools draw."""

# In pixels: at 150 per inch as wide as the text of a page of docs/, so that
# fonts have their size in points there.
WIDTH = 1150

COLORS = ('#2563eb', '#d1352b', '#059669', '#f59e0b', '#7c3aed', '#0891b2',
          '#db2777', '#65a30d')
