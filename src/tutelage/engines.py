"""Engines: the same function over many pieces of work, on this machine or on Ray. (To be written.)"""
