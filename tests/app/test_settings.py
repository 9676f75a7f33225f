import pytest

from nerve_fast.app.settings import MOST_STEPS, AppSettings
from nerve_fast.config import SEED_CONFIG, NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.pipeline.settings import ModelSettings


def test_words_and_clicks_alone_start_with_settings_of_their_own():
    settings = AppSettings(config={"radius": 2})
    assert settings.config_for(words=True) == NerveConfig(radius=2)
    assert settings.config_for(words=False) == SEED_CONFIG.replace(radius=2)


@pytest.mark.parametrize("steps", [None, MOST_STEPS + 1])
def test_a_walk_that_cannot_be_shown_step_by_step_is_refused(steps):
    with pytest.raises(InputError, match=f"steps is {steps}; expected .* up to {MOST_STEPS}"):
        AppSettings(config={"steps": steps})


def test_a_clip_is_not_asked_for_without_words():
    with pytest.raises(InputError, match="no_words"):
        AppSettings(words=False, models=ModelSettings(clip="somewhere"))
