// SPDX-License-Identifier: GPL-2.0

//! An immutable, ordered set of slots: a balanced tree (AVL) whose nodes are shared between versions.
//!
//! A change copies the nodes on the way from the root, at most 1.44 log2(n) of them, and leaves the version before as it
//! was for those who still look at it. Each node knows the largest end of the intervals below it, so that the slots that
//! touch a range are found without a look at the others.

use super::Region;
use core::marker::PhantomData;
use core::ops::Range;
use kernel::prelude::*;
use kernel::sync::Arc;

/// By what a tree is ordered: each slot is an interval of it.
pub(super) trait Order {
    /// The slot's interval, not empty.
    fn interval(region: &Region) -> Range<u64>;
}

/// By guest-physical address in one address space; no two overlap.
pub(super) struct ByGpa;

impl Order for ByGpa {
    fn interval(region: &Region) -> Range<u64> {
        region.range()
    }
}

/// By user address; any number may overlap.
pub(super) struct ByUser;

impl Order for ByUser {
    fn interval(region: &Region) -> Range<u64> {
        region.user..region.user.saturating_add(region.size)
    }
}

/// By number.
pub(super) struct ById;

impl Order for ById {
    fn interval(region: &Region) -> Range<u64> {
        region.id.into()..u64::from(region.id) + 1
    }
}

type Link = Option<Arc<Node>>;

/// A slot with those before it (`left`) and behind it (`right`).
struct Node {
    /// Start of the slot's interval; among slots of the same start their numbers decide.
    start: u64,
    /// The largest end of an interval in this node and below it.
    end: u64,
    height: u8,
    region: Arc<Region>,
    left: Link,
    right: Link,
}

fn height(link: &Link) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

/// The tree.
pub(super) struct Tree<O: Order> {
    root: Link,
    _order: PhantomData<fn() -> O>,
}

impl<O: Order> Tree<O> {
    /// Nothing.
    pub(super) const fn new() -> Self {
        Self {
            root: None,
            _order: PhantomData,
        }
    }

    /// The slot with the last start that is not behind `at`.
    #[inline]
    pub(super) fn last_from(&self, at: u64) -> Option<&Arc<Region>> {
        let mut link = &self.root;
        let mut best = None;
        while let Some(node) = link {
            link = if node.start <= at {
                best = Some(&node.region);
                &node.right
            } else {
                &node.left
            };
        }
        best
    }

    /// Calls `each` for the slots whose intervals touch `range`, in order.
    pub(super) fn each_touching(&self, range: &Range<u64>, each: &mut impl FnMut(&Arc<Region>)) {
        Self::touching(&self.root, range, each);
    }

    /// The recursion is as deep as the tree is high: 23 for all slots that there can be.
    fn touching(link: &Link, range: &Range<u64>, each: &mut impl FnMut(&Arc<Region>)) {
        let Some(node) = link.as_ref().filter(|node| node.end > range.start) else {
            return;
        };
        Self::touching(&node.left, range, each);
        if node.start < range.end {
            if O::interval(&node.region).end > range.start {
                each(&node.region);
            }
            Self::touching(&node.right, range, each);
        }
    }

    /// The tree with `region` in it as well.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn with(&self, region: &Arc<Region>) -> Result<Self> {
        Ok(Self {
            root: Some(Self::insert(&self.root, region)?),
            _order: PhantomData,
        })
    }

    /// The tree without `region`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn without(&self, region: &Region) -> Result<Self> {
        Ok(Self {
            root: Self::remove(&self.root, region)?,
            _order: PhantomData,
        })
    }

    fn before(region: &Region, node: &Node) -> bool {
        (O::interval(region).start, region.id) < (node.start, node.region.id)
    }

    fn node(left: Link, region: Arc<Region>, right: Link) -> Result<Arc<Node>> {
        let own = O::interval(&region);
        let below = |link: &Link| link.as_ref().map_or(0, |node| node.end);
        let node = Node {
            start: own.start,
            end: own.end.max(below(&left)).max(below(&right)),
            height: height(&left).max(height(&right)).wrapping_add(1),
            region,
            left,
            right,
        };
        Ok(Arc::new(node, GFP_KERNEL_ACCOUNT)?)
    }

    /// A node of these parts, whose heights differ by at most two, turned so that they differ by at most one.
    fn balanced(left: Link, region: Arc<Region>, right: Link) -> Result<Arc<Node>> {
        let (high_left, high_right) = (height(&left), height(&right));
        match (&left, &right) {
            (Some(side), _) if high_left > high_right + 1 => {
                let (outer, inner) = (&side.left, &side.right);
                match inner {
                    Some(middle) if height(inner) > height(outer) => Self::node(
                        Some(Self::node(
                            outer.clone(),
                            side.region.clone(),
                            middle.left.clone(),
                        )?),
                        middle.region.clone(),
                        Some(Self::node(middle.right.clone(), region, right)?),
                    ),
                    _ => Self::node(
                        outer.clone(),
                        side.region.clone(),
                        Some(Self::node(inner.clone(), region, right)?),
                    ),
                }
            }
            (_, Some(side)) if high_right > high_left + 1 => {
                let (inner, outer) = (&side.left, &side.right);
                match inner {
                    Some(middle) if height(inner) > height(outer) => Self::node(
                        Some(Self::node(left, region, middle.left.clone())?),
                        middle.region.clone(),
                        Some(Self::node(
                            middle.right.clone(),
                            side.region.clone(),
                            outer.clone(),
                        )?),
                    ),
                    _ => Self::node(
                        Some(Self::node(left, region, inner.clone())?),
                        side.region.clone(),
                        outer.clone(),
                    ),
                }
            }
            _ => Self::node(left, region, right),
        }
    }

    fn insert(link: &Link, region: &Arc<Region>) -> Result<Arc<Node>> {
        let Some(node) = link else {
            return Self::node(None, region.clone(), None);
        };
        let own = node.region.clone();
        if Self::before(region, node) {
            let left = Self::insert(&node.left, region)?;
            Self::balanced(Some(left), own, node.right.clone())
        } else {
            let right = Self::insert(&node.right, region)?;
            Self::balanced(node.left.clone(), own, Some(right))
        }
    }

    fn remove(link: &Link, region: &Region) -> Result<Link> {
        let Some(node) = link else {
            return Ok(None);
        };
        let own = node.region.clone();
        if node.region.id == region.id {
            let Some(right) = &node.right else {
                return Ok(node.left.clone());
            };
            let (next, rest) = Self::take_first(right)?;
            return Ok(Some(Self::balanced(node.left.clone(), next, rest)?));
        }
        let changed = if Self::before(region, node) {
            let left = Self::remove(&node.left, region)?;
            Self::balanced(left, own, node.right.clone())?
        } else {
            let right = Self::remove(&node.right, region)?;
            Self::balanced(node.left.clone(), own, right)?
        };
        Ok(Some(changed))
    }

    /// The first slot from `node` on, and what is left.
    fn take_first(node: &Arc<Node>) -> Result<(Arc<Region>, Link)> {
        let Some(left) = &node.left else {
            return Ok((node.region.clone(), node.right.clone()));
        };
        let (first, rest) = Self::take_first(left)?;
        let rest = Self::balanced(rest, node.region.clone(), node.right.clone())?;
        Ok((first, Some(rest)))
    }
}

impl<O: Order> Clone for Tree<O> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            _order: PhantomData,
        }
    }
}
