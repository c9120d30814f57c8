"""The parts synthetic rooms are made of: geometry, furniture, plans, textures, light, sensor. Not here: files (../rooms.py)."""
