from voxtile.cases.compiled import compiled


def test_where_no_folder_takes_the_cache_functions_are_compiled_anyway():
    scope = {}
    exec("def double(x):\n    return 2 * x", scope)  # has no file, so there is no place beside it
    assert compiled(scope["double"])(21) == 42
