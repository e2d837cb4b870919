//! Two tests of storage: the store with faults passes object_store's contract suite, and the program screens a bucket of an
//! independent S3 server (s3s-fs), which runs in the test's process.

#[path = "../../it/support/fault_store.rs"]
#[allow(dead_code, reason = "faults are for the other tests")]
mod fault_store;

#[cfg(test)]
mod s3;

#[cfg(test)]
mod tests {
    use object_store::integration::*;

    use super::fault_store::FaultStore;

    #[tokio::test]
    async fn the_store_of_the_fault_tests_passes_the_suite_of_object_store() {
        let faultless = || FaultStore::new(|_, _| None);
        let store = faultless();
        put_get_delete_list(&store).await;
        get_opts(&store).await;
        put_opts(&store, true).await;
        list_uses_directories_correctly(&store).await;
        list_with_delimiter(&store).await;
        rename_and_copy(&store).await;
        copy_if_not_exists(&store).await;
        copy_rename_nonexistent_object(&store).await;
        stream_get(&store).await;
        multipart_race_condition(&store, true).await;
        multipart_out_of_order(&store).await;
        put_get_attributes(&store).await;
        list_with_offset_exclusivity(&store).await;
        assert_eq!(store.fired(), 0);
    }
}
