"""Pictures that only the tools draw."""

COLORS = ('#2563eb', '#d1352b', '#059669', '#f59e0b', '#7c3aed', '#0891b2',
          '#db2777', '#65a30d')
