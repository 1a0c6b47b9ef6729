"""The NumPy wing: the definition of every operation, in readable NumPy."""

from .attention import attention_backward as attention_backward
from .attention import attention_forward as attention_forward
from .cells import cell_backward as cell_backward
from .cells import cell_forward as cell_forward
from .cells import cell_gates as cell_gates
from .clock import recurrence_chunk as recurrence_chunk
from .dense import dense_backward as dense_backward
from .dense import dense_forward as dense_forward
from .dropout import dropout_mask as dropout_mask
from .embedding import embedding_gather as embedding_gather
from .embedding import embedding_scatter as embedding_scatter
from .linear_scan import linear_scan_backward as linear_scan_backward
from .linear_scan import linear_scan_forward as linear_scan_forward
from .losses import cross_entropy_backward as cross_entropy_backward
from .losses import cross_entropy_forward as cross_entropy_forward
from .losses import mse_backward as mse_backward
from .losses import mse_forward as mse_forward
from .memory import recurrence_memory as recurrence_memory
from .multi_head import multi_head_backward as multi_head_backward
from .multi_head import multi_head_forward as multi_head_forward
from .optim import global_norm as global_norm
from .optim import optimizer_update as optimizer_update
from .optim import scaled as scaled
from .recurrence import check_lengths as check_lengths
from .recurrence import recurrence_backward as recurrence_backward
from .recurrence import recurrence_forward as recurrence_forward
