"""Options of the commands, one file a command; `cli` reads them, `commands` carries them out."""
