# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: the numbers of the papers, and errors that say what does not fit."""
import pytest

from lightseg_ros.training import recipes


def test_recipes_are_the_papers():
    fbsnet, elanet = recipes.load('paper', 'fbsnet'), recipes.load('paper', 'elanet')
    for recipe in (fbsnet, elanet):
        assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.power) == ('adam', 1e-3, 2e-4, 0.9)
        assert (recipe.epochs, recipe.crop) == (1000, (360, 480))
        assert recipe.scale == (0.75, 1, 1.25, 1.5, 1.75, 2) and recipe.loss == 'ce' and recipe.class_weights
        assert recipe.decay_all and not recipe.divide_std and recipe.color == recipe.ema == 0
    assert (fbsnet.batch, fbsnet.warmup, elanet.batch, elanet.warmup) == (6, 100, 8, 500)
    lrnnet = recipes.load('paper', 'lrnnet')
    assert (lrnnet.optimizer, lrnnet.lr, lrnnet.batch, lrnnet.power) == ('sgd', 0.01, 8, 0.9)
    assert lrnnet.epochs * (367 // 8) == pytest.approx(250_000, rel=0.03)
    affnet = recipes.load('paper', 'affnet')
    assert (affnet.optimizer, affnet.lr, affnet.weight_decay, affnet.batch, affnet.loss) == \
        ('adam', 5e-4, 1e-4, 10, 'owfl')


def test_options_beyond_the_papers_are_off():
    """Only the recalibration of the norms, which trains nothing, is part of every recipe."""
    off = {'aspect': 0, 'edges': 0, 'padding': 'mean', 'gamma': 0, 'dusk': 0, 'fog': 0, 'noise': 0,
           'erase': 0, 'recolor': 0, 'street_share': 0, 'weighting': 'log', 'dropout': 0, 'swa': 0,
           'recalibrate': True}
    for name in recipes.RECIPES:
        recipe = recipes.load(name, 'laanet')
        assert {k: getattr(recipe, k) for k in off} == off
        assert recipes.Recipe.from_plain(recipe.plain()) == recipe


@pytest.mark.parametrize('changes, expected', [
    ({'batch': 1}, 'batch is 1; laanet needs 2 or more, since .* every network but laanet trains on single'),
    ({'freeze': 2}, 'freeze is 2 without init'),
    ({'keep': 'first'}, "unknown keep 'first'; known: last, best"),
    ({'loss': 'dice'}, "unknown loss 'dice'; known: ce, ohem, owfl"),
    ({'crop': (32, 64)}, r'crop is \(32, 64\); expected height and width'),
    ({'first_scale': (0.5,)}, r'first_scale is \(0.5,\); expected two or more numbers above 0'),
    ({'mix': 2.0}, 'mix is 2.0; expected 0 to 1'),
    ({'dusk': -0.1}, 'dusk is -0.1; expected 0 to 1'),
    ({'fog': 1.5}, 'fog is 1.5; expected 0 to 1'),
    ({'noise': -1.0}, 'noise is -1.0; expected 0 to 255'),
    ({'swa': 0.2}, 'ema is 0.999 and swa 0.2; expected one of the two to be 0'),
    ({'padding': 'zero'}, "unknown padding 'zero'; known: mean, reflect"),
    ({'momentum': 0.9}, 'a recipe has no momentum; it has network, options, epochs'),
])
def test_a_recipe_that_does_not_fit_says_why(changes, expected):
    with pytest.raises(recipes.RecipeError, match=expected):
        recipes.load('best', 'laanet', **changes)


def test_a_borrowed_recipe_is_named(caplog):
    assert recipes.load('paper', 'elanet_released').warmup == recipes.load('paper', 'elanet').warmup == 500
    assert not caplog.records
    recipes.load('paper', 'laanet')
    assert 'laanet, recipe paper: its paper names SGD without a number' in caplog.text
    with pytest.raises(recipes.RecipeError, match="no recipe of a paper for 'unet'.*choose --recipe best"):
        recipes.load('paper', 'unet')
