//! The registry against a plain map.

use std::collections::BTreeMap;

use dftracer_core::registry::{Entry, Registry};
use proptest::prelude::*;

proptest! {
    #[test]
    fn holds_exactly_what_was_inserted_and_not_removed(
        events in prop::collection::vec(prop_oneof![
            3 => Just(None),
            2 => any::<usize>().prop_map(Some),
        ], 0..1_200)
    ) {
        let registry = Registry::new();
        let mut model = BTreeMap::new();
        for (item, leave) in events.into_iter().enumerate() {
            match leave {
                None => {
                    let entry = registry.insert(item).expect("far below 2^32").0;
                    prop_assert!(model.values().all(|other| *other != entry), "a place was given twice");
                    model.insert(item, entry);
                }
                Some(pick) if !model.is_empty() => {
                    let item = *model.keys().nth(pick % model.len()).expect("in range");
                    let entry = model.remove(&item).expect("in the model");
                    prop_assert_eq!(registry.remove(Entry(entry)), Some(item));
                }
                Some(_) => {}
            }
            prop_assert_eq!(registry.len(), model.len());
        }
        let mut seen = Vec::new();
        registry.for_each(|item| seen.push(item));
        seen.sort_unstable();
        prop_assert!(seen.iter().eq(model.keys()));
    }
}
