"""Every variant of the compiled kernels that this processor runs, forced in turn."""

import pytest

from conceptome_kernels import loader


@pytest.fixture(params=[name for name in loader.VARIANTS if name in loader.supported()], scope="module")
def variant(request):
    """Force one variant for all tests of a module that uses this fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(loader.VARIABLE, request.param)
        try:
            loader.library()
        except loader.KernelError as error:
            pytest.skip(str(error))
        yield request.param
