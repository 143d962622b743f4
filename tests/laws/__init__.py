"""The invariants I-1 … I-29 of METRICS 7.3: which test holds which law; "here" are the files of this folder.

law   on metrics (tests/…)                                         through models
I-1   core/test_rows (uniform row), core/test_agreement            here; analysis/test_focus
I-2   core/test_rows (one-hot row)
I-3   core/test_tiled, laws/test_maps                      here
I-4   core/test_pairs, _weights, _spectra, _similarity,            here; analysis/test_compare, analysis/test_hidden,
      _resampling (identical models)                               checkpoints/test_record_pairs
I-5   core/test_pairs, core/test_resampling, core/test_crossed     here; analysis/test_compare, analysis/test_hidden
I-6   laws/test_maps                                       here
I-7   core/test_circuits                                           here; analysis/test_weights
I-8   core/test_tiled, core/test_circuits                          here
I-9   core/test_pairs                                              here; checkpoints/test_record, _record_models
I-10  laws/test_maps                                       here
I-11  laws/test_maps                                       here
I-12  text/test_align (every piece of a marked word is marked; no map of words is built, so there are no rows to keep)
I-13  core/test_rows, laws/test_maps                       here; analysis/test_focus
I-14  core/test_tiled                                              analysis/test_planted_truth
I-15  core/test_tiled, laws/test_maps                      here; analysis/test_planted_truth
I-16  laws/test_maps, core/test_pairs                      here
I-17  not applicable: rollout and flow are not built
I-18  core/test_flow                                               checkpoints/test_record_values (no ALTI is built)
I-19  core/test_matrix, laws/test_maps, core/test_pairs    here; checkpoints/test_record_models
I-20  core/test_matrix                                             here; checkpoints/test_record, _record_llama
I-21  core/test_spectra (factors)                                  here; analysis/test_weights
I-22  core/test_similarity                                         analysis/test_hidden
I-23  salience/test_attribution
I-24  laws/test_maps, core/test_agreement
I-25  core/test_resampling, core/test_bands, core/test_multiplicity
I-26  core/test_resampling, core/test_bands, core/test_crossed; figures/calibration.py
I-27, I-28, I-29  core/test_matrix (rising keys, block sizes, offsets)

The published numbers of 7.1: checkpoints/test_load (cosines of MiniLM), core/test_multiplicity (Benjamini & Hochberg),
core/test_resampling (maize, spatial test, law schools).
"""
