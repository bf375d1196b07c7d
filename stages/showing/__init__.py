"""Views for people: label maps, pages, charts, tables."""
