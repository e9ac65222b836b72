"""What `import guidekit as gk` offers."""

import subprocess
import sys

import guidekit as gk


def test_every_name_is_there_and_no_module_hides_a_function():
    for name in gk.__all__:
        assert getattr(gk, name) is not None
    assert set(gk.__all__) <= set(dir(gk))
    import guidekit.engine.sample
    import guidekit.search
    import guidekit.search.refine

    assert callable(gk.sample)
    assert callable(gk.refine)
    assert gk.search.random is guidekit.search.random


def test_torch_is_not_imported_before_something_is_used():
    code = (
        "import guidekit, sys; assert 'torch' not in sys.modules; guidekit.sample; assert 'torch' in sys.modules;"
        "assert callable(guidekit.sample) and callable(guidekit.tune) and callable(guidekit.cite)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
