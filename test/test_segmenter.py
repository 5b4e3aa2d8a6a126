# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The segmenter: frames of any size and layout to labels of that size, the same on every device."""
from concurrent.futures import ThreadPoolExecutor
import copy
import logging

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightseg_ros import cuda_graphs, machine, networks, weights
from lightseg_ros.inference import backends, cpu, cuda, export, folding, kernels
from lightseg_ros.inference.segmenter import Segmenter, SegmenterError, Smoother

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


@pytest.fixture(scope='module')
def model():
    """A network that starts fast, with random weights whose norms fit, and its card."""
    return export.random_weights('affnet', 'camvid', (128, 96))


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    """Keep what is compiled away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module')
def segment(model):
    return Segmenter(*model, 'cpu', backend='torch')


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255)


def textbook(model, frame, size):
    """Labels and confidence of a frame in float32, NCHW, nothing clever; `size`: (h, w) of the network."""
    network, card = model
    x = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    if x.shape[2:] != size:
        x = F.interpolate(x, size=size, mode='bilinear', antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.mean, card.std))
    with torch.inference_mode():
        logits = network.float().eval().forward_logits((x.float() - mean) / std)
        logits = F.interpolate(logits, size=frame.shape[:2], mode='bilinear', align_corners=False)
    return logits.argmax(1)[0].numpy(), 255 * torch.softmax(logits, 1).amax(1)[0].numpy()


@pytest.mark.parametrize('height, width, size', [
    (96, 128, (96, 128)), (120, 160, (96, 128)), (300, 401, (96, 128)), (100, 100, (96, 96)),
    (70, 300, (64, 128))])
def test_labels_have_the_size_of_the_frame(model, segment, height, width, size):
    frame = picture(height, width)
    assert segment.network_size(height, width) == size
    result, = segment([frame], overlay=True, confidence=True)
    labels, confidence = textbook(model, frame, size)
    assert result.labels.shape == (height, width) and result.labels.dtype == np.uint8
    assert (result.labels == labels).mean() >= 0.9999
    assert np.abs(result.confidence - confidence).max() <= 0.6
    assert result.overlay.shape == frame.shape and result.overlay.dtype == np.uint8
    assert len(np.unique(labels)) > 2


def test_resolutions_and_resize_modes(model):
    frame = picture(240, 320)
    assert Segmenter(*model, 'cpu', '128x64', backend='torch').network_size(240, 320) == (64, 85)
    stretched = Segmenter(*model, 'cpu', '128x64', backend='torch', resize_mode='stretch')
    assert stretched.network_size(240, 320) == (64, 128)
    labels, _ = textbook(model, frame, (64, 128))
    assert (stretched([frame])[0].labels == labels).mean() >= 0.9999
    native = Segmenter(*model, 'cpu', 'native', backend='torch')
    assert native.network_size(240, 320) == (240, 320) and native.network_size(20, 320) == (64, 320)
    labels, _ = textbook(model, frame, (240, 320))
    assert (native([frame])[0].labels == labels).mean() >= 0.9999


def test_a_batch_is_its_frames(segment):
    frames = [picture(120, 160, 1), picture(96, 128, 2), picture(120, 160, 3)]
    together = segment(frames, overlay=True, confidence=True)
    for frame, result in zip(frames, together):
        alone, = segment([frame], overlay=True, confidence=True)
        assert (alone.labels == result.labels).mean() >= 0.9999
        assert np.abs(alone.confidence.astype(int) - result.confidence).max() <= 1
    assert segment([]) == []


def test_what_is_not_wanted_is_not_made(segment):
    result, = segment([picture(96, 128)])
    assert result.overlay is None and result.confidence is None
    assert set(result.stage_ms) == {'preprocess', 'network', 'postprocess'}
    assert all(ms >= 0 for ms in result.stage_ms.values())


@pytest.mark.parametrize('layout', ['bgr', 'padded', 'read-only', 'grey', 'flipped'])
def test_layouts_in_memory(segment, layout):
    """Whatever view `images.decode` gives, the result is that of the plain array."""
    frame = picture(120, 160)
    if layout == 'bgr':
        view = np.ascontiguousarray(frame[..., ::-1])[..., ::-1]
    elif layout == 'padded':
        view = np.zeros((120, 170, 3), np.uint8)[:, :160]
        view[...] = frame
    elif layout == 'read-only':
        view = frame.copy()
        view.flags.writeable = False
    elif layout == 'grey':
        view = np.broadcast_to(frame[..., :1], frame.shape)
        frame = view.copy()
    else:
        view = np.ascontiguousarray(frame[::-1, ::-1])[::-1, ::-1]
    assert np.array_equal(view, frame)
    found, = segment([view], overlay=True, confidence=True)
    expected, = segment([frame], overlay=True, confidence=True)
    for name in ('labels', 'overlay', 'confidence'):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_results_are_the_callers(model):
    segment = Segmenter(*model, 'cpu')
    first, = segment([picture(120, 160, 1)], overlay=True, confidence=True)
    kept = first.labels.copy(), first.overlay.copy(), first.confidence.copy()
    segment([picture(120, 160, 2)], overlay=True, confidence=True)
    for before, now in zip(kept, (first.labels, first.overlay, first.confidence)):
        assert np.array_equal(before, now), 'the next frame wrote over the last'
        now[...] = 0  # writable


def test_overlay_alpha_is_live(segment):
    frame = picture(96, 128)
    try:
        segment.overlay_alpha = 0.0
        assert np.array_equal(segment([frame], overlay=True)[0].overlay, frame)
        segment.overlay_alpha = 1.0
        result, = segment([frame], overlay=True)
        assert np.array_equal(result.overlay, segment.labels.palette()[result.labels])
    finally:
        segment.overlay_alpha = 0.5


def test_stream_is_one_after_the_other(segment):
    frames = [picture(120, 160, 1), picture(96, 128, 2), picture(120, 160, 3)]
    for frame, result in zip(frames, segment.stream(iter(frames), confidence=True), strict=True):
        assert np.array_equal(result.labels, segment([frame])[0].labels)
        assert result.overlay is None and result.confidence is not None
    assert list(segment.stream([])) == []

    def broken():
        yield frames[0]
        raise RuntimeError('no more')

    seen = []
    with pytest.raises(RuntimeError, match='no more'):
        seen.extend(segment.stream(broken()))
    assert np.array_equal(segment([frames[0]])[0].labels, segment([frames[0]])[0].labels)


def test_sizes_beyond_the_limit_are_evicted(model, caplog):
    caplog.set_level(logging.INFO)
    segment = Segmenter(*model, 'cpu', 'native', backend='torch')
    for i in range(cpu.MAX_SIZES + 1):
        segment([picture(64, 64 + 8 * i)])
    assert '1 x 64x64 is evicted' in caplog.text
    caplog.clear()
    segment([picture(64, 64 + 8 * i)])
    assert 'compiled' not in caplog.text
    segment([picture(64, 64)])
    assert 'torch compiled for 1 x 64x64' in caplog.text


@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime'])
def test_backends_give_the_same_images(model, segment, backend):
    pytest.importorskip(backend)
    other = Segmenter(*model, 'cpu', backend=backend)
    for frame in (picture(120, 160), picture(96, 128)):
        a, = segment([frame], overlay=True, confidence=True)
        b, = other([frame], overlay=True, confidence=True)
        assert (a.labels == b.labels).mean() >= 0.999
        assert np.abs(a.confidence.astype(int) - b.confidence).mean() < 0.1
        same = a.labels == b.labels
        assert np.array_equal(a.overlay[same], b.overlay[same])


def test_trained_weights_agree_across_backends_and_precisions():
    """On a frame that a network was trained for: 99.99 % in float32, 99 % in bfloat16."""
    pytest.importorskip('openvino')
    try:
        model = weights.load(weights.find('laanet'))
    except weights.WeightsError as e:
        pytest.skip(str(e))
    from lightseg_ros.synthetic.street import Street
    frame = Street(480, 360).render(3.0)[0]
    labels, _ = textbook(model, frame, (360, 480))
    exact = Segmenter(*model, 'cpu', backend='openvino')([frame])[0].labels
    assert (exact == labels).mean() >= 0.9999
    if 'BF16' in pytest.importorskip('openvino').Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        near = Segmenter(*model, 'cpu', backend='openvino', precision='bfloat16')([frame])[0].labels
        assert (near == labels).mean() >= 0.99


@pytest.mark.parametrize('backend', ['torch', 'openvino'])
@pytest.mark.parametrize('value', [3e38, float('nan')])
def test_labels_of_what_is_not_finite_are_not_given(model, backend, value):
    """NaN is larger than nothing: all pixels would be class 0."""
    if backend == 'openvino':
        pytest.importorskip('openvino')
    network, card = copy.deepcopy(model[0]), model[1]
    with torch.no_grad():
        # Up to the last one: OpenVINO's ReLU makes 0 of NaN.
        for name, parameter in network.named_parameters():
            if name.startswith('classifier'):
                parameter.fill_(value)
    segment = Segmenter(network, card, 'cpu', '64x64', backend=backend)
    with pytest.raises(SegmenterError, match='not finite'):
        segment(picture(64, 64))


def test_describe_names_backend_and_reason(model):
    segment = Segmenter(*model, 'cpu', backend='torch', precision='bfloat16')
    text = segment.describe()
    assert model[1].dataset == '' and f'({model[1].labels.name}, ' in text
    for word in ('affnet', '128x96', 'CPU', 'bfloat16', 'torch', 'as asked for'):
        assert word in text
    assert segment.resources()['device'] == 'CPU'
    assert float(segment.resources()['memory (MB)']) > 50
    assert segment.warm_up(96, 128) > 0


@pytest.mark.parametrize('has', [True, False])
def test_says_where_bfloat16_would_be_faster(model, monkeypatch, has):
    pytest.importorskip('openvino')
    monkeypatch.setattr(machine, 'has_bfloat16', lambda: has)
    assert ("precision 'bfloat16' would be" in Segmenter(*model, 'cpu').describe()) == has
    assert 'would be' not in Segmenter(*model, 'cpu', backend='torch').describe()


@pytest.mark.parametrize('wrong, said', [
    ({'device': 'gpu'}, "device is 'gpu'; expected 'auto', 'cpu'"),
    ({'device': 'cuda:99'}, 'CUDA devices'),
    ({'resolution': '128'}, 'expected WIDTHxHEIGHT'),
    ({'resolution': '32x32'}, '64 to 8192'),
    ({'resize_mode': 'crop'}, 'expected one of fit, stretch'),
    ({'precision': 'float8'}, 'expected one of auto, float32'),
    ({'backend': 'tensorflow'}, 'expected one of auto, openvino'),
    ({'threads': -1}, 'expected 0'),
    ({'device': 'openvino:GPU', 'backend': 'torch'}, "only 'openvino' runs"),
])
def test_wrong_choices_are_named(model, wrong, said):
    with pytest.raises(SegmenterError, match=said):
        Segmenter(*model, **{'device': 'cpu', **wrong})


@pytest.mark.parametrize('frame', [
    np.zeros((10, 10), np.uint8), np.zeros((10, 10, 4), np.uint8), np.zeros((10, 10, 3), np.float32),
    np.zeros((0, 10, 3), np.uint8), None])
def test_wrong_frames_are_named(segment, frame):
    tensor = torch.zeros(64, 64, 3)
    for nothing, found in ((None, 'NoneType'), (iter([]), 'list_iterator'), (tensor, 'Tensor')):
        with pytest.raises(SegmenterError, match=f'a frame is {found}; expected a numpy array'):
            segment(nothing)
    with pytest.raises(SegmenterError, match='expected a numpy array'):
        segment([frame])
    with pytest.raises(SegmenterError, match='expected a numpy array'):
        list(segment.stream([frame]))


@pytest.mark.parametrize('reversed_channels', [False, True])
def test_what_is_captured_computes_the_same_on_a_cpu(model, segment, reversed_channels):
    """The function that CUDA captures, here called plainly."""
    frame = picture(120, 160)
    core = backends.DeployModel(folding.fold(model[0]), model[1].mean, model[1].std).lowered(torch.float32)
    run = cuda.FramePipeline(core, torch.from_numpy(model[1].labels.palette()), fused=False)
    kind = cuda.GraphKey(1, 120, 160, (96, 128), reversed_channels, True, True)
    out = cuda.Images.empty(kind, 'cpu')
    frames = torch.from_numpy(frame[..., ::-1].copy() if reversed_channels else frame)[None]
    with torch.inference_mode():
        run(frames, torch.tensor(kernels.channel_order(reversed_channels)), kind, out)
    expected, = segment([frame], overlay=True, confidence=True)
    assert np.array_equal(out.labels[0], expected.labels)
    assert np.array_equal(out.overlay[0], expected.overlay)
    assert np.array_equal(out.confidence[0], expected.confidence)


@pytest.mark.parametrize('name', ['laanet', 'fbsnet', 'lrnnet', 'elanet', 'affnet'])
def test_what_is_captured_stays_on_its_device(name):
    """On "meta", which has shapes and types only, whatever is made on the CPU would not fit."""
    network = networks.build(name, 11)
    core = backends.DeployModel(folding.fold(network), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    core = core.lowered(torch.float16, 'meta')
    palette = torch.zeros((256, 3), dtype=torch.uint8, device='meta')
    run = cuda.FramePipeline(core, palette, fused=False)
    for height, width in ((96, 128), (480, 640)):
        kind = cuda.GraphKey(2, height, width, (96, 128), True, True, True)
        with torch.inference_mode():
            run(torch.zeros((2, height, width, 3), dtype=torch.uint8, device='meta'),
                torch.zeros(3, dtype=torch.int32, device='meta'), kind, cuda.Images.empty(kind, 'meta'))
            x = torch.zeros((2, 3, 96, 128), dtype=torch.float16, device='meta')
            logits = run.logits(x.contiguous(memory_format=torch.channels_last))
        assert logits.dtype == torch.float16 and logits.shape[:2] == (2, 11)
    norms = [m for m in core.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(m.running_var.dtype == torch.float32 for m in norms)


@pytest.mark.parametrize('name', [pytest.param(n, marks=CUDA) for n in (
    'laanet', 'fbsnet', 'lrnnet', 'elanet', 'affnet')])
def test_graph_equals_eager_and_cpu(name):
    """With trained weights in float16; random ones, whose labels are noise, only compare in float32."""
    from lightseg_ros.synthetic.street import Street
    try:
        model, precision = weights.load(weights.find(name)), 'float16'
    except weights.WeightsError:
        model, precision = export.random_weights(name, 'camvid', (480, 360)), 'float32'
    graph, eager = (Segmenter(*model, 'cuda', precision=precision, graph=graph) for graph in (True, False))
    for height, width, turned in ((360, 480, False), (480, 640, False), (360, 480, True)):
        frame = Street(width, height).render(3.0)[0]
        if turned:
            frame = np.ascontiguousarray(frame[..., ::-1])[..., ::-1]
        a, = graph([frame], overlay=True, confidence=True)
        b, = eager([frame], overlay=True, confidence=True)
        same = a.labels == b.labels
        labels, _ = textbook(model, frame, (360, 480))
        print(f'{name} {precision} {width}x{height}: graph and eager {100 * same.mean():.3f} %, float32 on a '
              f'CPU {100 * (a.labels == labels).mean():.3f} %')
        assert same.mean() >= 0.999
        assert np.array_equal(a.overlay[same], b.overlay[same])
        assert np.abs(a.confidence.astype(int) - b.confidence).mean() < 0.5
        # A CPU resizes bytes with whole numbers, so a few bytes differ by one.
        assert (a.labels == labels).mean() >= (0.995 if height == 360 else 0.98)


@pytest.mark.parametrize('name', [pytest.param('affnet', marks=CUDA)])
def test_compiled_network_equals_eager(name):
    model = export.random_weights(name, 'camvid', (128, 96))
    options = {'device': 'cuda', 'precision': 'float32'}
    compiled, eager = Segmenter(*model, backend='torch-compile', **options), Segmenter(*model, **options)
    frame = picture(96, 128)
    assert (compiled([frame])[0].labels == eager([frame])[0].labels).mean() >= 0.999


@pytest.mark.parametrize('graph', [pytest.param(g, marks=CUDA) for g in (True, False)])
def test_cuda_stream_keeps_order(model, graph):
    segment = Segmenter(*model, 'cuda', graph=graph)
    frames = [picture(120, 160, i) for i in range(6)] + [picture(96, 128, 7)] + [picture(120, 160, 8)]
    alone = [segment([frame], overlay=True)[0] for frame in frames]
    for expected, result in zip(alone, segment.stream(frames, overlay=True), strict=True):
        assert np.array_equal(expected.labels, result.labels)
        assert np.array_equal(expected.overlay, result.overlay)
        assert set(result.stage_ms) == {'upload', 'device', 'download'}


@pytest.mark.parametrize('graph', [pytest.param(g, marks=CUDA) for g in (True, False)])
def test_cuda_alpha_is_live_and_graphs_are_evicted(model, graph, caplog):
    caplog.set_level(logging.INFO)
    segment = Segmenter(*model, 'cuda', 'native', graph=graph)
    frame = picture(96, 128)
    for alpha in (0.0, 1.0):
        segment.overlay_alpha = alpha
        result, = segment([frame], overlay=True)
        expected = segment.labels.palette()[result.labels] if alpha else frame
        assert np.array_equal(result.overlay, expected)
    for i in range(cuda.MAX_SIZES + 1):
        segment([picture(64, 64 + 8 * i)])
    assert '1 graphs for 128x96 are evicted' in caplog.text
    again, = segment([frame], overlay=True)
    assert np.array_equal(again.overlay, result.overlay)


@pytest.mark.parametrize('threads', [pytest.param(2, marks=CUDA)])
def test_cuda_threads_capture_side_by_side(model, threads, caplog):
    """As the nodes of one process do: no capture fails because of another thread's."""
    frames = [picture(64 + 8 * i, 96, i) for i in range(6)]
    expected = [prediction.labels for prediction in Segmenter(*model, 'cuda')(frames)]

    def work(_):
        segment = Segmenter(*model, 'cuda')
        found = [segment(frame).labels for frame in frames]
        cuda_graphs.free_cache()
        return found

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(work, range(threads)):
            assert all(np.mean(a == b) > 0.999 for a, b in zip(found, expected, strict=True))
    assert not caplog.records, caplog.text


@pytest.mark.parametrize('fused', [pytest.param(f, marks=CUDA) for f in (True, False)])
def test_cuda_memory_does_not_grow(model, fused, monkeypatch):
    monkeypatch.setattr(kernels, 'available', fused and kernels.available)
    segment = Segmenter(*model, 'cuda')
    frame = picture(120, 160)
    for _ in range(20):
        segment([frame], overlay=True, confidence=True)
    before = torch.cuda.memory_allocated()
    for _ in range(200):
        segment([frame], overlay=True, confidence=True)
    assert torch.cuda.memory_allocated() == before


def test_labels_come_first_and_the_rest_is_equal(random_weights):
    """`start` in two steps gives what one call gives, for frames of two sizes, in their order."""
    frames = [np.random.default_rng(i).integers(0, 256, size, np.uint8)
              for i, size in enumerate([(96, 128, 3), (60, 200, 3), (96, 128, 3)])]
    segment = Segmenter.load(random_weights, 'cpu', '128x96')
    expected = segment(frames, overlay=True, confidence=True)
    pending = segment.start(frames, overlay=True, confidence=True)
    for labels, prediction in zip(pending.labels(), expected):
        np.testing.assert_array_equal(labels, prediction.labels)
    for found, prediction in zip(pending.finish(), expected):
        for kind in ('labels', 'overlay', 'confidence'):
            np.testing.assert_array_equal(getattr(found, kind), getattr(prediction, kind))
    assert segment.start([], confidence=True).finish() == []


@pytest.mark.parametrize('backend', ['torch', 'openvino', 'onnxruntime'])
def test_smoothing_is_the_average_of_the_logits(model, segment, backend):
    """The textbook's average; each camera has its own, and what is not smoothed stays the same to the bit."""
    pytest.importorskip(backend)
    segment = segment if backend == 'torch' else Segmenter(*model, 'cpu', backend=backend)
    cameras = [[picture(120, 160, seed) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6))]
    run, mean = backends.build(backend, segment._engine.spec, 2, 96, 128), None
    smoothers = [Smoother(0.6), Smoother(0.6)]
    for i, frames in enumerate(zip(*cameras)):
        plain = segment(frames, confidence=True)
        smooth = segment(frames, confidence=True, smoothers=smoothers)
        logits = run(kernels.resize(torch.from_numpy(np.stack(frames)), (96, 128)).contiguous()).clone()
        mean = logits if mean is None else 0.4 * logits + 0.6 * mean
        for found, of, allowed in ((plain, logits, 0), (smooth, mean, i)):
            labels, confidence = (t.numpy() for t in kernels.label(of, (120, 160), True))
            for c in range(2):
                assert (found[c].labels != labels[c]).mean() <= 1e-3 * allowed
                assert np.abs(found[c].confidence.astype(int) - confidence[c]).max() <= allowed
                assert np.array_equal(smooth[c].labels, plain[c].labels) == (i == 0)
    with pytest.raises(SegmenterError, match='2 frames have 1 smoothers; expected one for each'):
        segment(frames, smoothers=[smoothers[0]] * 2)


@pytest.mark.parametrize('change', ['nothing', 'gap', 'back', 'view', 'size', 'network', 'forget'])
def test_smoothing_starts_anew(model, segment, change):
    """With a stamp that does not follow, another view, size or network; else earlier frames count."""
    smoother, frame = Smoother(0.9), picture(96, 128, 2)
    segment(picture(96, 128, 1), smoothers=[smoother.next(10 ** 9, False)])
    if change == 'size':
        frame = picture(120, 160, 2)
    elif change == 'network':
        segment = Segmenter(*model, 'cpu', backend='torch')
    elif change == 'forget':
        smoother.forget()
    smoother.next({'gap': 1_500_000_001, 'back': 999_999_999}.get(change, 1_500_000_000), change == 'view')
    assert np.array_equal(segment(frame, smoothers=[smoother]).labels,
                          segment(frame).labels) == (change != 'nothing')
