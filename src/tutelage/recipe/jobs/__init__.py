"""What each kind of stage does, in terms of the rooms below: read inputs, call a room, write outputs."""
