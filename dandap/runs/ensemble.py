def combine(members, output_dir="outputs", **_):
    raise NotImplementedError
