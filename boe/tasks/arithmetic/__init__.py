"""Long multiplication, written out."""
