"""What a term sees: one tile of scores, its positions, and operands; and what is known of a term before it runs."""

from jattn._terms.operand import AXES as AXES
from jattn._terms.operand import AnyArray as AnyArray
from jattn._terms.operand import Operand as Operand
from jattn._terms.operand import Shaped as Shaped
from jattn._terms.operand import Size as Size
from jattn._terms.operand import as_array as as_array
from jattn._terms.operand import broadcast_operand as broadcast_operand
from jattn._terms.operand import indices as indices
from jattn._terms.operand import number as number
from jattn._terms.operand import operand as operand
from jattn._terms.operand import plain as plain
from jattn._terms.operand import repeated as repeated
from jattn._terms.operand import wide as wide
from jattn._terms.operand import working as working
from jattn._terms.origin import Origin as Origin
from jattn._terms.term import FieldValue as FieldValue
from jattn._terms.term import Offsets as Offsets
from jattn._terms.term import Signature as Signature
from jattn._terms.term import Term as Term
from jattn._terms.term import Terms as Terms
from jattn._terms.term import bind as bind
from jattn._terms.term import finite as finite
from jattn._terms.term import lift as lift
from jattn._terms.term import modified as modified
from jattn._terms.term import split as split
from jattn._terms.term import term as term
