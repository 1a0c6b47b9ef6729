"""The compiled CPU wing: the cells' own structs over the registers of the processor."""
